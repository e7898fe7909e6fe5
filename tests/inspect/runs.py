"""Run directories made by hand, for tests and benchmarks of what reads them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from deepcompile.pipeline.rundir import RunDir

RATES = {"name": "CPU", "bandwidth": 2e10, "launch": 2e-6, "flops": {"f32": 1e11}}
PASSES = ("canonicalise", "functionalise-random", "partition", "batch-updates", "fuse-rows")


def small_run(root: Path, text: str = "") -> Path:
    """A run of one graph with each thing that a run can hold; `text` stands in all names."""
    run = RunDir.create(root, name="small", versions={"torch": f"2.13{text}"})
    graph = f"g0_forward{text}"
    line = f"model{text}.py:7"
    before = [
        "graph {",
        "  %x : f32[4, 8] = placeholder",
        f"  %mm : f32[4, 8] = aten.mm.default(%x, %x)  # {line}",
        f"  %relu : f32[4, 8] = aten.relu.default(%mm)  # {line}",
        f"  %add : f32[4, 8] = aten.add.Tensor(%relu, {text or 1})  # {line}",
        *[f"  %far_{n} : f32[4] = aten.neg.default(%x)" for n in range(20)],
        "  return (%add,)",
        "}",
    ]
    changed = [line.replace("aten.relu.default", "prims.maximum") for line in before]
    after = [
        before[0],
        "  kernel @k0(in b0: f32[32], out b1: f32[32]) {",
        "    axes p0: parallel 32",
        "  }",
        *before[1:3],
        f"  %k0 : (f32[4, 8],) = kernel @k0(%mm)  # {line}",
        *before[5:-2],
        "  return (%k0,)",
        "}",
    ]
    modules = {f"layers.0{text}": "mm relu", f"layers.1{text}": "add"}
    meta = {"kind": "forward", "status": "input", "modules": modules}
    run.graph_state(graph, 0, "input", "\n".join(before), meta)
    told = {"kind": "forward", "status": "changed", "ms": 3.5, "op_delta": {"prims.maximum": 1}}
    run.graph_state(graph, 1, f"canonicalise{text}", "\n".join(changed), told)
    run.graph_state(graph, 2, "partition", None, {"kind": "forward", "status": "unchanged"})
    run.graph_state(graph, 3, "fuse-rows", "\n".join(after), told | {"op_delta": {"kernel": 1}})
    run.graph_state(graph, 4, "late", None, {"status": "failed", "reason": f"bad{text}"})
    facts = {"bytes_read": 256, "bytes_written": 128, "operations": 64.0, "seconds": 2e-5}
    kept = run.kernel(
        f"{graph}.k0",
        {"source.cpp": f"void k0() {{}} // {text}", "nest.txt": "kernel @k0() {\n}"},
        {"graph": graph, "ops": [f"relu.default{text}"], "origins": [line], **facts},
    )
    slow = {"bytes_read": 512, "bytes_written": 128, "operations": 1e6, "seconds": 1.2e-5}
    owner = {"tensor": f"x{text}", "role": "input", "nbytes": 1024, "first": -1, "last": 1}
    memory = {"live": [1024, 2048, 1536, 512], "peak_step": 0, "owners": [owner], "others": 1024}
    run.program(
        "g0_forward",
        {
            "graph": graph,
            "kind": "forward",
            "rates": RATES,
            "steps": [
                {"step": 0, "kind": "extern", "name": "mm", "op": "aten.mm.default",
                 "origin": line, **slow},
                {"step": 1, "kind": "kernel", "name": "k0", "kernel": kept, **facts},
            ],
            "memory": memory,
        },
    )  # fmt: skip
    run.memory("g0", _plan(text))
    run.sharding("model", _sharding(text))
    run.event("fallback", graph=graph, reason=f"no rule{text}", origin=line)
    run.event(f"odd{text}", more={f"key{text}": [text]})
    run.finish("ok")
    return run.path


def _plan(text: str) -> dict[str, Any]:
    row = {"tensor": f"relu{text}", "op": "relu", "nbytes": 512, "decision": "recompute",
           "seconds": 1e-6, "why": "chosen", "origin": f"model{text}.py:7"}  # fmt: skip
    facts = {
        "budget": 4096,
        "peak": 2048,
        "unplanned_peak": 8192,
        "parameters": 512,
        "optimizer": 0,
        "recompute_seconds": 1e-6,
    }
    return {"graph": f"abc{text}", "facts": facts, "tensors": [row]}


def _sharding(text: str) -> dict[str, Any]:
    move = {"phase": "forward", "kind": "all_reduce", "axis": "tp", "bytes": 128, "seconds": 1e-6}
    plan = {
        "mesh": "dp=2,tp=4",
        "parameters": {f"layers.0{text}.weight": "R S(0)", "layers.1.weight": "R S(1)"},
        "moves": [move],
    }
    return {"graph": "model", "kind": "model", "plan": plan, "nodes": {}}


def large_run(root: Path, nodes: int, seed: int = 0) -> Path:
    """A run of one graph of so many nodes, ten passes, and a kernel for twenty nodes."""
    draw = random.Random(seed)
    run = RunDir.create(root, name="large")
    names = [f"primals_{number}" for number in range(50)]
    state = [f"  %{name} : f32[1024, 1024] = placeholder" for name in names]
    modules: dict[str, list[str]] = {}
    ops = ("add.Tensor", "mul.Tensor", "sub.Tensor", "relu.default", "mm.default")
    for number in range(nodes - len(names)):
        taken = [names[-1 - min(int(draw.expovariate(0.3)), len(names) - 1)] for _ in range(2)]
        state.append(
            f"  %op_{number} : f32[1024, 1024] = aten.{draw.choice(ops)}(%{taken[0]}, %{taken[1]})"
            f"  # model/layers/block.py:{100 + number % 300}"
        )
        part = draw.choice(("attention.q", "attention.o", "mlp.up", "norm"))
        modules.setdefault(f"layers.{number * 48 // nodes}.{part}", []).append(f"op_{number}")
        names.append(f"op_{number}")
    graph = "g0_forward"
    told: dict[str, Any] = {"kind": "forward", "status": "input"}
    told["modules"] = {path: " ".join(found) for path, found in modules.items()}
    run.graph_state(graph, 0, "input", _text(state, names[-1]), told)
    kernels = nodes // 20
    for number in range(1, 11):
        name, told = PASSES[(number - 1) % 5], {"kind": "forward", "ms": number * 3.3}
        if number % 3 == 0:
            run.graph_state(graph, number, name, None, told | {"status": "unchanged"})
            continue
        state = _passed(state, number, draw)
        if number == 10:
            state[50 : 50 + 2 * kernels] = [
                f"  %k{n} : (f32[1024, 1024],) = kernel @k{n}(%primals_1, %{names[50 + 3 * n]})"
                f"  # model/layers/block.py:{100 + n % 300}"
                for n in range(kernels)
            ]
        told |= {"status": "changed", "op_delta": {"aten.add.Tensor": -number, "kernel": number}}
        run.graph_state(graph, number, name, _text(state, names[-1]), told)
    run.program(graph, {"graph": graph, "rates": RATES, **_program(run, graph, kernels, draw)})
    for number in range(2000):
        run.event("fusion-rejected", graph=graph, reason=f"edge {number}: no common rows")
    run.finish("ok")
    return run.path


def _text(lines: list[str], last: str) -> str:
    return "\n".join(["graph {", *lines, f"  return (%{last},)", "}"])


def _passed(lines: list[str], number: int, draw: random.Random) -> list[str]:
    """Lines of which some are gone, some changed and some new."""
    found = []
    for line in lines:
        chance = draw.random()
        if chance < 0.02:
            continue
        found.append(line.replace("aten.", "prims.", 1) if chance < 0.06 else line)
        if chance > 0.99:
            found.append(f"  %new_{number}_{len(found)} : f32[4] = aten.neg.default(%primals_1)")
    return found


def _program(run: RunDir, graph: str, kernels: int, draw: random.Random) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for number in range(kernels):
        cost = {
            "bytes_read": 8 << 20,
            "bytes_written": 4 << 20,
            "operations": 1e6 * (number % 97),
            "seconds": 1e-4 * (1 + number % 13),
        }
        source = "\n".join(
            f"  const float v{n} = b0[i + {draw.randrange(1000)}] * {draw.random()}f;"
            for n in range(100)
        )
        line = f"model/layers/block.py:{100 + number % 300}"
        meta = {"graph": graph, "ops": ["add.Tensor", "mul.Tensor"], "origins": [line], **cost}
        files = {"source.cpp": source, "nest.txt": source[:800]}
        kept = run.kernel(f"{graph}.k{number}", files, meta)
        steps.append({"kind": "kernel", "name": f"k{number}", "kernel": kept, **cost})
        steps.append({"kind": "extern", "name": f"op_{number}", "op": "aten.mm.default", **cost})
    live = [draw.randrange(1 << 30, 3 << 30) for _ in range(len(steps) + 2)]
    owners = [
        {"tensor": f"op_{n}", "role": "transient", "nbytes": 1 << 20, "first": n, "last": n + 500}
        for n in range(100)
    ]
    memory = {"live": live, "peak_step": live.index(max(live)) - 1, "owners": owners, "others": 1}
    return {"steps": [{"step": n, **s} for n, s in enumerate(steps)], "memory": memory}
