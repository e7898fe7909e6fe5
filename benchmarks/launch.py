"""What a compiled graph of Triton kernels costs the host: per call, and per kernel in it.

Graphs of 1, 16 and 64 normalisations in a row run on a device that is not there: launches go to a C
function that returns at once, so that what is left is ours. On a GPU each launch adds what CUDA
takes for one, 2 to 3 microseconds. Best of several rounds, in a fresh process.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from benchmarks._measure import Check, Measurement, Plan, SuiteResult

LINKS = (1, 16, 64)
LIMIT_CALL, LIMIT_KERNEL = 40.0, 0.5
"""Microseconds."""


def run(plan: Plan) -> SuiteResult:
    """Microseconds of a call of the runner and of one through `torch.compile`, by kernels."""
    notes = tuple(" ".join(part.split()) for part in (__doc__ or "").split("\n\n"))
    if find_spec("triton") is None:
        return SuiteResult("launch", notes=(*notes, "Left out: Triton is not installed."))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.launch", str(plan.pick(15, 5))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    measurements = []
    for row in rows:
        name = f"{row['kernels']:.0f} kernels"
        measurements.append(Measurement(f"{name}: our runner", row["runner"], "us"))
        measurements.append(Measurement(f"{name}: whole compiled call", row["call"], "us"))
    few, many = rows[0], rows[-1]
    each = (many["runner"] - few["runner"]) / (many["kernels"] - few["kernels"])
    measurements.append(Measurement("each kernel more", each, "us"))
    checks = (
        Check("runner with the fewest kernels, us", few["runner"], "<=", LIMIT_CALL),
        Check("each kernel more, us", each, "<=", LIMIT_KERNEL),
    )
    return SuiteResult("launch", tuple(measurements), checks, notes, {"rows": rows})


def _chain(links: int) -> Callable[[Any], Any]:
    import torch

    def chain(x: Any) -> Any:
        for _ in range(links):
            x = torch.softmax(x - x.mean(0, keepdim=True), -1)
        return x

    return chain


def _best(run: Callable[[], object], rounds: int) -> float:
    """Microseconds of a call in the best round."""
    calls, best = 200, float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e6


def _measure_here(rounds: int) -> list[dict[str, float]]:
    import gc

    import torch

    import deepcompile.backend
    from deepcompile.options import Options
    from deepcompile.runtime.build import build
    from deepcompile.runtime.interpreted_driver import InterpretedDriver
    from deepcompile.runtime.triton_program import TritonRunner

    nothing = build('extern "C" int nothing() { return 0; }', Options(), lambda *_, **__: None)
    driver = InterpretedDriver()
    driver.launch = ctypes.cast(nothing.handle.nothing, ctypes.c_void_p)
    deepcompile.backend.driver_of = lambda device: driver  # type: ignore[assignment]
    rows = []
    x = torch.randn(64, 64)
    for links in LINKS:
        torch._dynamo.reset()
        function = torch.compile(_chain(links), backend="deepep", options={"codegen": "triton"})
        with deepcompile.backend.recording() as record:
            function(x)
        spec = record.graphs[-1].spec
        runner = next(
            thing
            for thing in gc.get_objects()
            if type(thing) is TritonRunner and thing.spec is spec
        )
        rows.append(
            {
                "kernels": float(len(record.graphs[-1].kernels)),
                "runner": _best(lambda runner=runner: runner([x]), rounds),  # type: ignore[misc]
                "call": _best(lambda function=function: function(x), rounds),  # type: ignore[misc]
            }
        )
    return rows


if __name__ == "__main__":
    print(json.dumps(_measure_here(int(sys.argv[1]))))
