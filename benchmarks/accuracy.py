"""Losses of 100 steps against eager, and gradients of the first step, in fp32."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks._measure import Check, Measurement, Plan, SuiteResult, compile_with

LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-4
LEARNING_RATE = 5e-4
WARMUP = 50
CLIP = 1.0

Gradients = dict[str, Tensor]


def run(plan: Plan) -> SuiteResult:
    """Each compiled backend against eager on each model; only deepep is checked."""
    measurements: list[Measurement] = []
    checks: list[Check] = []
    compiled = [backend for backend in plan.backends if backend != "eager"]
    steps = plan.pick(100, 10)
    for name in plan.models:
        torch._dynamo.reset()
        model = models.build(name)
        batch = model.batch(0)
        reference = _gradients(copy.deepcopy(model.module), "eager", batch)
        exact = _gradients(copy.deepcopy(model.module).double(), "eager", _in_double(batch))
        losses = _losses(model, "eager", steps)
        for backend in compiled:
            gradients = _gradients(copy.deepcopy(model.module), backend, batch)
            excess = worst_gradient(gradients, reference, exact)
            difference = _largest_difference(losses, _losses(model, backend, steps))
            measurements += [
                Measurement(f"{name}/{backend}/gradients", excess, "of what is allowed"),
                Measurement(f"{name}/{backend}/losses", difference, "relative"),
            ]
            if backend == "deepep":
                checks.append(Check(f"{name}: gradients of step 1", excess, "<=", 1.0))
                promise = f"{name}: losses of {steps} steps"
                checks.append(Check(promise, difference, "<=", LOSS_TOLERANCE))
    notes = (
        "gradients: the worst parameter's share of its allowance, see worst_gradient",
        f"losses: AdamW, rate {LEARNING_RATE:g} after {WARMUP} warm-up steps, norm clipped to "
        f"{CLIP:g}; largest relative difference of any step",
    )
    return SuiteResult("accuracy", tuple(measurements), tuple(checks), notes)


def worst_gradient(gradients: Gradients, reference: Gradients, exact: Gradients) -> float:
    """The largest share any parameter takes of its allowance; at most 1 is within the rule.

    A gradient may differ from eager's by `1e-4 (||eager's|| + 1e-4 ||all of eager's||)`, or be off
    the fp64 gradient by twice what eager is off: some gradients are zero in exact arithmetic and
    are nothing but rounding in fp32. A missing or non-finite gradient is infinitely wrong.
    """
    if gradients.keys() != reference.keys():
        return math.inf
    whole = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in reference.values()))
    worst = 0.0
    for name, gradient in gradients.items():
        expected = reference[name]
        allowed = GRADIENT_TOLERANCE * (float(expected.norm()) + GRADIENT_TOLERANCE * whole)
        by_eager = _share(float((gradient - expected).norm()), allowed)
        off = float((gradient.double() - exact[name]).norm())
        by_exact = _share(off, 2 * float((expected.double() - exact[name]).norm()))
        share = min(by_eager, by_exact)
        worst = math.inf if math.isnan(share) else max(worst, share)
    return worst


def _share(error: float, allowed: float) -> float:
    if error == 0:
        return 0.0
    return error / allowed if allowed else math.inf


def _gradients(module: nn.Module, backend: str, batch: models.Batch) -> Gradients:
    models.loss_of(compile_with(module, backend), batch).backward()
    return {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def _losses(model: models.BenchmarkModel, backend: str, steps: int) -> list[float]:
    module = copy.deepcopy(model.module)
    function = compile_with(module, backend)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        loss = models.loss_of(function, model.batch(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _largest_difference(reference: list[float], losses: list[float]) -> float:
    differences = [abs(b - a) / abs(a) for a, b in zip(reference, losses, strict=True)]
    return math.inf if any(map(math.isnan, differences)) else max(differences)


def _in_double(batch: models.Batch) -> models.Batch:
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in batch.items()
    }
