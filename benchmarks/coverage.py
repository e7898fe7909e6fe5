"""Whose code runs: own kernels, externs and fallbacks of each model, from run directories."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import models, rows
from benchmarks._measure import Check, Measurement, Plan, SuiteResult, compile_with
from deepcompile.inspect.reader import list_runs, read_run

# What may stay a call into ATen: products, attention, and indexing by data.
ALLOWED_EXTERN = re.compile(
    r"""^(aten[.:]+)?_?(
        mm | addmm | bmm | baddbmm | linear | convolution | convolution_backward
      | scaled_dot_product_\w+
      | embedding | embedding_dense_backward
      | index | index_put | index_put_ | unsafe_index | index_select | index_add
      | gather | scatter | scatter_add | scatter_reduce
    )(\.\w+)?$""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Coverage:
    """Counts over all graphs of a compile."""

    kernels: int
    externs: Counter[str]
    fallbacks: Counter[str]

    @property
    def stray_externs(self) -> list[str]:
        """Externs that a kernel should have taken."""
        return sorted(op for op in self.externs if not ALLOWED_EXTERN.match(op))


def run(plan: Plan) -> SuiteResult:
    """Compile each model and each row function once and read what became of its operations."""
    if "deepep" not in plan.backends:
        return SuiteResult("coverage", notes=("needs the deepep backend",))
    measurements: list[Measurement] = []
    checks: list[Check] = []
    details: dict[str, Any] = {}
    for name in plan.models:
        coverage = _cover_model(name)
        measurements.append(Measurement(f"{name}/kernels", coverage.kernels, "kernels"))
        checks.append(Check(f"{name}: stray externs", len(coverage.stray_externs), "<=", 0))
        checks.append(Check(f"{name}: fallbacks", coverage.fallbacks.total(), "<=", 0))
        checks.append(Check(f"{name}: kernels", coverage.kernels, ">=", 1))
        # Every model has products: none recorded would mean that nothing above was looked at.
        checks.append(Check(f"{name}: externs recorded", coverage.externs.total(), ">=", 1))
        details[name] = {
            "kernels": coverage.kernels,
            "externs": dict(coverage.externs),
            "fallbacks": dict(coverage.fallbacks),
            "stray_externs": coverage.stray_externs,
        }
    for case in rows.cases():
        kernels = _cover_rows(case).kernels
        measurements.append(Measurement(f"{case.name}/kernels", kernels, "kernels"))
        if case.headline:
            # One forward and one backward: fewer than two would mean an extern did the work.
            promise = f"{case.name}: one kernel forward, one backward; distance from 2"
            checks.append(Check(promise, abs(kernels - 2), "<=", 0))
    notes = ("externs may be products, convolution, attention and data-dependent indexing only",)
    return SuiteResult("coverage", tuple(measurements), tuple(checks), notes, details)


def read_coverage(root: Path) -> Coverage:
    """Count kernels, externs and fallbacks of all runs below `root`."""
    externs: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()
    kernels = 0
    for path in list_runs(root):
        run = read_run(path)
        kernels += len(run.kernels)
        for event in run.events:
            if event.kind == "extern":
                externs[str(event.fields.get("op"))] += int(event.fields.get("count", 1))
        for event in run.fallbacks:
            fallbacks[str(event.fields.get("op") or event.fields.get("reason"))] += 1
    return Coverage(kernels, externs, fallbacks)


def _cover_model(name: str) -> Coverage:
    model = models.build(name)
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        compiled = compile_with(model.module, "deepep", run_dir=folder)
        models.loss_of(compiled, model.batch(0)).backward()
        return read_coverage(Path(folder))


def _cover_rows(case: rows.RowCase) -> Coverage:
    torch._dynamo.reset()
    inputs = [
        tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in case.inputs
    ]
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        compiled = compile_with(case.function, "deepep", run_dir=folder)
        output = compiled(*inputs)
        output.backward(torch.randn_like(output))
        return read_coverage(Path(folder))
