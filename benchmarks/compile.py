"""Cold CPU seconds of the first training step, each in a fresh process with empty caches.

Counted: user and system time from the end of building the model to the end of the first forward and
backward, of the process and all its descendants (compilers, worker pools), whether they have ended
or not. So the backend's own imports count; importing torch and transformers, and building the model
and its batch, do not.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._measure import (
    Check,
    Measurement,
    Plan,
    SuiteResult,
    compile_with,
    geometric_mean,
    tree_cpu_seconds,
)

LIMIT = 1 / 3
AIM = 1 / 5
CACHE_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "DEEPCOMPILE_CACHE_DIR")


def run(plan: Plan) -> SuiteResult:
    """Median CPU seconds of each backend on each model; the runs alternate."""
    measurements: list[Measurement] = []
    checks: list[Check] = []
    details: dict[str, list[dict[str, float]]] = {}
    ratios: list[float] = []
    for name in plan.models:
        samples: dict[str, list[float]] = {backend: [] for backend in plan.backends}
        for _ in range(plan.pick(3, 1)):
            for backend in plan.backends:
                first = first_step(name, backend)
                samples[backend].append(first["own_cpu"] + first["descendants_cpu"])
                details.setdefault(f"{name}/{backend}", []).append(first)
        medians = {backend: statistics.median(values) for backend, values in samples.items()}
        measurements += [
            Measurement(f"{name}/{backend}", medians[backend], "CPU s", tuple(values))
            for backend, values in samples.items()
        ]
        if {"inductor", "deepep"} <= medians.keys():
            ratios.append(medians["deepep"] / medians["inductor"])
            checks.append(Check(f"{name}: deepep / inductor", ratios[-1], "<=", LIMIT))
    if ratios:
        mean = geometric_mean(ratios)
        checks.append(Check("geometric mean: deepep / inductor (aim)", mean, "<=", AIM))
    notes = tuple(" ".join(part.split()) for part in (__doc__ or "").split("\n\n"))
    return SuiteResult("compile", tuple(measurements), tuple(checks), notes, details)


@contextmanager
def cold_caches() -> Iterator[dict[str, str]]:
    """The environment of a process that finds all caches of compilers empty."""
    with tempfile.TemporaryDirectory(prefix="cold-", ignore_cleanup_errors=True) as folder:
        environment = dict(os.environ)
        for variable in CACHE_VARIABLES:
            environment[variable] = str(Path(folder, variable.lower()))
        yield environment


def first_step(model: str, backend: str) -> dict[str, float]:
    """Run the first step in a fresh process; raises CalledProcessError if that fails."""
    with cold_caches() as environment:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.compile", model, backend],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(name: str, backend: str) -> dict[str, float]:
    from benchmarks import models

    model = models.build(name)
    batch = model.batch(0)
    own, descendants = tree_cpu_seconds()
    started = time.perf_counter()
    models.loss_of(compile_with(model.module, backend), batch).backward()
    wall = time.perf_counter() - started
    own_after, descendants_after = tree_cpu_seconds()
    return {
        "own_cpu": own_after - own,
        "descendants_cpu": descendants_after - descendants,
        "wall": wall,
        "before_cpu": own + descendants,
    }


if __name__ == "__main__":
    print(json.dumps(_measure_here(sys.argv[1], sys.argv[2])))
