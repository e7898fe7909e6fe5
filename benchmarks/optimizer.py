"""A compiled AdamW step on the parameters of a small GPT-2, and what compiling it costs.

Steps: medians of rounds taken in turn; torch's own `foreach=True` and `fused=True` run in eager.
Compiling: seconds of the first step in fresh processes with empty caches, at 10, 100 and 1,000
parameters. What Dynamo and AOTAutograd take is printed apart from what the backend takes: passes,
code generation, the C++ compiler, loading. Inductor is left out there at 1,000: it takes minutes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.optim import AdamW

from benchmarks._measure import (
    Check,
    Measurement,
    Plan,
    SuiteResult,
    alternate,
    compile_with,
    paired_ratio,
)
from benchmarks.compile import cold_caches

COUNTS = (10, 100, 1000)
MODELS: dict[str, dict[str, int]] = {
    "gpt2": {"layers": 8, "width": 256, "words": 4096},
    "gpt2, narrow": {"layers": 8, "width": 64, "words": 1024},
}
"""100 tensors each: 7.5 million numbers, which come from memory, and half a million from caches."""
INDUCTOR_LIMIT = 1.5
FUSED_LIMIT = 1.0
GROWTH_LIMIT = 1.1


def gpt2_parameters(layers: int = 8, width: int = 256, words: int = 4096) -> list[Tensor]:
    """100 tensors with 7.5 million numbers, and gradients."""
    shapes: list[tuple[int, ...]] = [(words, width), (256, width), (width,), (width,)]
    for _ in range(layers):
        shapes += [(width,)] * 4
        shapes += [(3 * width, width), (3 * width,), (width, width), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return _parameters(shapes)


def _parameters(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    torch.manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter)
    return found


def run(plan: Plan) -> SuiteResult:
    """Median of one step, and seconds of the first one."""
    measurements: list[Measurement] = []
    checks: list[Check] = []
    details: dict[str, object] = {}
    for model, sizes in MODELS.items():
        samples = _time_steps(plan, **sizes)
        measurements += [
            Measurement(f"adamw step, {model}{name}", statistics.median(values), "s", tuple(values))
            for name, values in samples.items()
        ]
        checks += _promises(model, samples)
    if "deepep" in plan.backends:
        measurements += _memory_floor(plan)
    for backend in plan.backends:
        if backend != "eager":
            measured, growth = _time_compiles(plan, backend, details)
            measurements += measured
            checks += growth
    notes = tuple(" ".join(part.split()) for part in (__doc__ or "").split("\n\n"))
    return SuiteResult("optimizer", tuple(measurements), tuple(checks), notes, details)


def _promises(model: str, samples: dict[str, list[float]]) -> list[Check]:
    ours = samples.get("/deepep")
    found = []
    for name, limit in (("/inductor", INDUCTOR_LIMIT), (" fused=True/eager", FUSED_LIMIT)):
        if ours is not None and name in samples:
            ratio = paired_ratio(samples[name], ours)
            what = name.strip(" /").removesuffix("/eager")
            found.append(Check(f"adamw step, {model}: {what} / deepep", ratio, ">=", limit))
    return found


def _memory_floor(plan: Plan) -> list[Measurement]:
    """What moving the bytes of the larger model's step takes: four arrays read, three written."""
    count = sum(parameter.numel() for parameter in gpt2_parameters())
    arrays = [torch.randn(count) for _ in range(4)]

    def move() -> None:
        torch.add(arrays[0], arrays[1], out=arrays[0])  # three of the seven
        torch.add(arrays[2], arrays[3], out=arrays[2])  # three more
        arrays[3].mul_(1.0)  # two; one more than a step has

    samples = alternate({"move": move}, rounds=plan.pick(15, 3), seconds=0.05, warmup=3)["move"]
    seconds = statistics.median(samples) * 7 / 8
    return [Measurement("adamw step, gpt2: moving its bytes", seconds, "s", tuple(samples))]


def _time_steps(plan: Plan, **sizes: int) -> dict[str, list[float]]:
    torch._dynamo.reset()
    contenders: dict[str, Callable[[], object]] = {}
    for backend in plan.backends:
        if backend == "eager":
            contenders[" foreach=True/eager"] = AdamW(gpt2_parameters(**sizes), foreach=True).step
            contenders[" fused=True/eager"] = AdamW(gpt2_parameters(**sizes), fused=True).step
        else:
            step = AdamW(gpt2_parameters(**sizes)).step
            contenders[f"/{backend}"] = compile_with(step, backend)
    return alternate(contenders, rounds=plan.pick(25, 5), seconds=0.02 * plan.pick(10, 5), warmup=5)


def _time_compiles(
    plan: Plan, backend: str, details: dict[str, object]
) -> tuple[list[Measurement], list[Check]]:
    counts = plan.pick(3, 2)
    if backend == "inductor":
        counts = 2
    measurements: list[Measurement] = []
    own: dict[int, float] = {}
    for count in COUNTS[:counts]:
        rounds = 1 if count == COUNTS[-1] else plan.pick(3, 1)
        runs = [_first_step(count, backend) for _ in range(rounds)]
        details[f"{count} parameters/{backend}"] = runs
        totals = [run["total"] for run in runs]
        name = f"first step, {count} parameters"
        measurements.append(
            Measurement(f"{name}/{backend}", statistics.median(totals), "s", tuple(totals))
        )
        if backend != "deepep":
            continue
        # The quickest: the C++ compiler's share varies with what else the machine does.
        own[count] = min(run["own"] for run in runs)
        parts = {"backend alone": [run["own"] for run in runs]}
        parts["Dynamo and AOTAutograd"] = [run["total"] - run["own"] for run in runs]
        for part, values in parts.items():
            label = f"{name}: {part}/{backend}"
            measurements.append(Measurement(label, statistics.median(values), "s", tuple(values)))
        reading = statistics.median(run["reading"] for run in runs)
        measurements.append(Measurement(f"{name}: reading the graph once/{backend}", reading, "s"))
        sizes = [run["source_bytes"] for run in runs]
        measurements.append(Measurement(f"{name}: C++ source/{backend}", sizes[0], "bytes"))
    checks = []
    if len(own) > 1:
        last = max(own)
        ratio = own[last] / own[COUNTS[0]]
        checks.append(
            Check(f"backend alone: {last} / {COUNTS[0]} parameters", ratio, "<=", GROWTH_LIMIT)
        )
    return measurements, checks


def _first_step(count: int, backend: str) -> dict[str, float]:
    """Run it in a fresh process; raises CalledProcessError if that fails."""
    with cold_caches() as environment:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.optimizer", str(count), backend],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _measure_here(count: int, backend: str) -> dict[str, float]:
    # Sizes repeat as in a model, so that the kernels' work is that of few different shapes.
    shapes = [((64, 64), (64,), (64, 128), (128,))[number % 4] for number in range(count)]
    optimizer = AdamW(_parameters(shapes))
    step = compile_with(optimizer.step, backend)
    if backend != "deepep":
        started = time.perf_counter()
        step()
        return {"total": time.perf_counter() - started}
    from deepcompile.backend import recording

    with recording() as record:
        started = time.perf_counter()
        step()
        total = time.perf_counter() - started
    (graph,) = record.graphs
    assert graph.code is not None
    assert graph.source is not None
    return {
        "total": total,
        "own": sum(graph.seconds.values()),
        "source_bytes": float(len(graph.code.source)),
        "nodes": float(len(graph.source.graph.nodes)),
        "reading": _seconds_of_reading(graph.source),
        **graph.seconds,
    }


def _seconds_of_reading(module: GraphModule) -> float:
    """What looking once at each node takes: at its operator, its arguments and its shape.

    No compiler can take less, so it says how far own time can stay the same for larger graphs.
    """
    started = time.perf_counter()
    seen = {
        (node.target, len(node.all_input_nodes), getattr(node.meta.get("val"), "shape", None))
        for node in module.graph.nodes
    }
    assert seen
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(_measure_here(int(sys.argv[1]), sys.argv[2])))
