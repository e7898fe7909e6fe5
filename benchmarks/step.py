"""Time of one training step: forward, backward and fused AdamW, in fp32."""

from __future__ import annotations

import copy
import functools
import statistics

import torch

from benchmarks import models
from benchmarks._measure import (
    Check,
    Measurement,
    Plan,
    SuiteResult,
    alternate,
    compile_with,
    geometric_mean,
    paired_ratio,
)


def run(plan: Plan) -> SuiteResult:
    """Median step of each backend on each model, and ratios of paired rounds."""
    measurements: list[Measurement] = []
    ratios: dict[str, list[float]] = {}
    checks: list[Check] = []
    for name in plan.models:
        samples = _time_model(name, plan)
        measurements += [
            Measurement(f"{name}/{backend}", statistics.median(values), "s", tuple(values))
            for backend, values in samples.items()
        ]
        for baseline in ("eager", "inductor"):
            if baseline in samples and "deepep" in samples:
                ratio = paired_ratio(samples["deepep"], samples[baseline])
                ratios.setdefault(baseline, []).append(ratio)
                checks.append(Check(f"{name}: deepep / {baseline}", ratio, "<=", 1.0))
    for baseline, values in ratios.items():
        name = f"geometric mean: deepep / {baseline}"
        checks.append(Check(name, geometric_mean(values), "<", 1.0))
    return SuiteResult(
        "step",
        tuple(measurements),
        tuple(checks),
        (
            "a step is forward, backward, fused AdamW and zero_grad on one fixed batch",
            "ratios are medians over rounds in which the backends take turns",
        ),
    )


def _time_model(name: str, plan: Plan) -> dict[str, list[float]]:
    torch._dynamo.reset()
    model = models.build(name)
    batch = model.batch(0)
    contenders = {
        backend: functools.partial(_step, *_prepare(model, backend), batch)
        for backend in plan.backends
    }
    return alternate(contenders, rounds=plan.pick(9, 3), seconds=plan.pick(1, 0))


def _prepare(model: models.BenchmarkModel, backend: str):
    module = copy.deepcopy(model.module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    return compile_with(module, backend), optimizer


def _step(module, optimizer: torch.optim.Optimizer, batch: models.Batch) -> None:
    models.loss_of(module, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
