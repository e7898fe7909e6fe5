"""How long `deepcompile show` and `diff` take on a graph of 10,000 nodes, in fresh processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks._measure import Check, Measurement, Plan, SuiteResult
from deepcompile.pipeline.rundir import RunDir

NODES = 10_000
LIMIT = 1.0
"""Seconds from the start of a process to its end."""
COMMANDS = {
    "show": ("show", "model"),
    "show --node": ("show", "model", "--node", "add_1000", "--around", "3"),
    "show --collapse": ("show", "model", "--collapse", "2"),
    "show --format dot": ("show", "model", "--format", "dot"),
    "show --format model-explorer": ("show", "--format", "model-explorer"),
    "diff, list": ("diff",),
    "diff, equal": ("diff", "input", "input"),
    "diff, one value more": ("diff", "renumber"),
    "diff, fusion": ("diff", "fuse-rows"),
    "diff, fusion, side by side": ("diff", "fuse-rows", "--side"),
    "diff, two runs": ("diff", "{first}", "{second}", "--unified"),
}


def run(plan: Plan) -> SuiteResult:
    """Median wall seconds of each command, with the start of Python."""
    measurements, checks = [], []
    with tempfile.TemporaryDirectory() as folder:
        runs = [str(record_large_run(Path(folder), name, NODES)) for name in ("first", "second")]
        for name, words in COMMANDS.items():
            arguments = [word.format(first=runs[0], second=runs[1]) for word in words]
            samples = tuple(seconds(arguments, folder) for _ in range(plan.pick(7, 3)))
            value = statistics.median(samples)
            measurements.append(Measurement(name, value, "s", samples))
            checks.append(Check(f"{name} on {NODES} nodes, seconds", value, "<", LIMIT))
    return SuiteResult("inspection", tuple(measurements), tuple(checks))


def seconds(arguments: list[str], root: str) -> float:
    """Wall seconds of one command over the runs of `root`; raises when it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "deepcompile", "-q", *arguments],
        env=os.environ | {"DEEPCOMPILE_RUN_DIR": root},
        stdout=subprocess.PIPE,
        check=False,
    )
    took = time.perf_counter() - start
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"deepcompile {' '.join(arguments)} failed: {done.returncode}")
    return took


def record_large_run(root: Path, name: str, nodes: int) -> Path:
    """A run of one graph: as it came, with one value more near its start, and with fused rows."""
    run_dir = RunDir.create(root, name=name)
    states = (
        ("input", _text(_lines(nodes))),
        ("renumber", _text(_lines(nodes, extra=True))),
        ("fuse-rows", _text(_lines(nodes, extra=True, fused=True))),
    )
    for index, (pass_name, text) in enumerate(states):
        meta = {"status": "changed" if index else "input", "kind": "inference"}
        run_dir.graph_state("model", index, pass_name, text, meta)
    run_dir.finish()
    return run_dir.path


_PER_LAYER = 5


def _lines(nodes: int, *, extra: bool = False, fused: bool = False) -> Iterator[str]:
    """Layers of a weight, a product and three pointwise ops with a skip, named as torch does."""
    kind = "f32[8, 1024, 4096]{4194304, 4096, 1}"
    numbers: dict[str, int] = {}

    def node(op: str, call: str, line: int) -> str:
        number = numbers[op] = numbers.get(op, -1) + 1
        name = f"{op}_{number}" if number else op
        text = f"%{name} : {kind} = {call}  # project/models/transformer/block.py:{line}"
        lines.append(text)
        return name

    lines: list[str] = [f"%x : {kind} = placeholder"]
    value = "x"
    for layer in range(nodes // _PER_LAYER):
        if extra and layer == 3:
            value = node("add", f"aten.add.Tensor(%{value}, 1e-05)", 7)
        skip = value
        weight = f"w_{layer}"
        lines.append(f"%{weight} : f32[4096, 4096] = placeholder")
        value = node("mm", f"aten.mm.default(%{value}, %{weight})", 20)
        if fused and layer % 2:
            kernel = node("k", f"kernel @k{layer}(%{value}, %{skip})", 21)
            value = node("getitem", f"getitem(%{kernel}, 0)", 21)
            continue
        value = node("add", f"aten.add.Tensor(%{value}, %{skip}, alpha=2)", 21)
        inner = node("sigmoid", f"aten.sigmoid.default(%{value})", 22)
        value = node("mul", f"aten.mul.Tensor(%{value}, %{inner})", 22)
    yield from lines
    yield f"return (%{value},)"


def _text(lines: Iterator[str]) -> str:
    return "graph {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"
