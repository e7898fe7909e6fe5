"""Cold CPU seconds of compiling a training step for a GPU that is not there, by number of layers.

The demo's transformer, forward and backward, for sm_90, each depth in a fresh process with empty
caches. Counted: user and system time of the process and its children (the assembler). Kernels: from
the fused graph to machine code, with importing Triton. All: with tracing and the passes, from the
end of building the model.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from benchmarks._measure import Check, Measurement, Plan, SuiteResult, tree_cpu_seconds
from benchmarks.compile import cold_caches

DEPTHS = (2, 8)
LIMIT = 10.0
CAPABILITY = 90


def run(plan: Plan) -> SuiteResult:
    """CPU seconds at each depth, and how many kernels differ."""
    notes = tuple(" ".join(part.split()) for part in (__doc__ or "").split("\n\n"))
    if find_spec("triton") is None:
        return SuiteResult("crosscompile", notes=(*notes, "Left out: Triton is not installed."))
    measurements: list[Measurement] = []
    details: dict[str, Any] = {}
    last: dict[int, dict[str, float]] = {}
    for depth in DEPTHS:
        runs = [_compile(depth) for _ in range(plan.pick(3, 1))]
        details[f"{depth} layers"] = runs
        for part in ("kernels", "all"):
            values = tuple(run[part] for run in runs)
            median = statistics.median(values)
            measurements.append(Measurement(f"{depth} layers: {part}", median, "CPU s", values))
        last[depth] = runs[-1] | {"kernels": statistics.median(run["kernels"] for run in runs)}
        for count in ("calls", "distinct"):
            name = f"{depth} layers: {count} of kernels"
            measurements.append(Measurement(name, runs[-1][count], "count"))
    few, many = DEPTHS
    growth = last[many]["distinct"] / last[few]["distinct"]
    checks = (
        Check(f"{many} layers: kernels, CPU s", last[many]["kernels"], "<=", LIMIT),
        Check(f"distinct kernels: {many} / {few} layers", growth, "<=", 1.0),
    )
    return SuiteResult("crosscompile", tuple(measurements), checks, notes, details)


def _compile(layers: int) -> dict[str, float]:
    """Compile in a fresh process; raises CalledProcessError if that fails."""
    with cold_caches() as environment:
        environment.pop("TRITON_INTERPRET", None)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.crosscompile", str(layers)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _measure_here(layers: int) -> dict[str, float]:
    import torch

    from deepcompile import crosscompile
    from deepcompile.cost.gpus import GPUS
    from deepcompile.demo.model import ModelConfig, Transformer

    spent = 0.0
    generate = crosscompile._CrossCompiler._generate

    def timed(self: Any, *args: Any) -> Any:
        nonlocal spent
        before = sum(tree_cpu_seconds())
        try:
            return generate(self, *args)
        finally:
            spent += sum(tree_cpu_seconds()) - before

    crosscompile._CrossCompiler._generate = timed  # type: ignore[assignment,method-assign]
    config = ModelConfig(layers=layers)
    model = Transformer(config)
    tokens = torch.zeros(8, config.context, dtype=torch.int64)
    before = sum(tree_cpu_seconds())
    found = crosscompile.cross_compile(model, (tokens, tokens), GPUS[CAPABILITY])
    total = sum(tree_cpu_seconds()) - before
    if found.fallbacks:
        raise RuntimeError(f"kernels that fall back: {found.fallbacks}")
    return {
        "kernels": spent,
        "all": total,
        "calls": float(len(found.kernels)),
        "distinct": float(sum(kernel.distinct for kernel in found.kernels)),
    }


if __name__ == "__main__":
    print(json.dumps(_measure_here(int(sys.argv[1]))))
