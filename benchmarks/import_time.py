"""What `import deepcompile` costs on top of `import torch`, in fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks._measure import Check, Measurement, Plan, SuiteResult

LIMIT = 0.1
_PROGRAM = """
import time, torch
started = time.perf_counter()
import deepcompile
print(time.perf_counter() - started)
"""


def run(plan: Plan) -> SuiteResult:
    """Median seconds of the import in a process that has torch already."""
    samples = []
    for _ in range(plan.pick(7, 3)):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True, check=True
        )
        samples.append(float(done.stdout))
    added = statistics.median(samples)
    return SuiteResult(
        "import_time",
        (Measurement("import deepcompile", added, "s", tuple(samples)),),
        (Check("added to import torch, seconds", added, "<", LIMIT),),
    )
