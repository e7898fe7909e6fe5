"""Dropout under an activation budget: backward must use the mask that forward drew.

Torch's partitioner (seen in 2.13) recomputes `native_dropout` where a budget is set, and draws the
mask a second time: gradients arrive at elements that forward dropped, and miss others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.nn import functional as F  # noqa: N812

from deepcompile.backend import recording
from deepcompile.errors import MemoryBudgetError

PROBABILITY = 0.5


@dataclass(frozen=True)
class DropoutStep:
    """What one step through a dropout gave; where forward dropped, `output` is exactly zero."""

    output: Tensor
    gradient: Tensor
    weight_gradient: Tensor


def dropout_step(call: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> DropoutStep:
    """One forward and backward of `call`, which is `dropped_product` or a compiled form of it."""
    generator = torch.Generator().manual_seed(seed)
    # Away from zero: a zero of the output must come from dropout alone.
    x = (torch.rand(16, 64, generator=generator) + 0.5).requires_grad_()
    weight = (torch.rand(16, 64, generator=generator) + 0.5).requires_grad_()
    torch.manual_seed(seed)
    output = call(x, weight)
    output.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    return DropoutStep(output.detach(), x.grad, weight.grad)


def dropped_product(x: Tensor, weight: Tensor) -> Tensor:
    """A function whose gradients are zero exactly where its output is."""
    return F.dropout(torch.exp(x), PROBABILITY) * weight


def disagreements(step: DropoutStep) -> int:
    """Elements dropped in forward that got a gradient, and elements kept that got none."""
    dropped = step.output == 0
    wrong = (step.gradient == 0) != dropped
    return int((wrong | ((step.weight_gradient == 0) != dropped)).sum())


def check_same_mask_in_backward(step: DropoutStep) -> None:
    """Assert that dropout did drop, about as often as it should, and backward the same elements."""
    dropped = (step.output == 0).float().mean()
    assert abs(dropped - PROBABILITY) < 0.1
    assert disagreements(step) == 0


def test_the_check_passes_in_eager() -> None:
    check_same_mask_in_backward(dropout_step(dropped_product))


def torchs_step(fraction: float) -> DropoutStep:
    """The step compiled by torch alone, its partitioner with this `activation_memory_budget`."""
    torch._dynamo.reset()
    compiled = torch.compile(dropped_product, backend="aot_eager_decomp_partition", fullgraph=True)
    with functorch_config.patch(activation_memory_budget=fraction):
        return dropout_step(compiled)


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_torch_draws_the_mask_again_under_a_budget(fraction: float) -> None:
    whole, budgeted = torchs_step(1.0), torchs_step(fraction)
    check_same_mask_in_backward(whole)
    # The budget leaves forward alone: the same seed gives the same mask.
    assert torch.equal(budgeted.output, whole.output)
    if disagreements(budgeted) == 0:
        pytest.skip("this torch keeps the dropout mask under an activation budget")
    assert disagreements(budgeted) > whole.output.numel() // 4
    assert not torch.allclose(budgeted.gradient, whole.gradient)


@pytest.mark.parametrize("rng", ["philox", "eager"])
def test_deepep_without_a_budget_uses_the_mask_of_forward(rng: str) -> None:
    torch._dynamo.reset()
    options = {"rng": rng, "strict": True}
    compiled = torch.compile(dropped_product, backend="deepep", fullgraph=True, options=options)
    step = dropout_step(compiled)
    check_same_mask_in_backward(step)
    if rng == "eager":
        eager = dropout_step(dropped_product)
        torch.testing.assert_close(step.gradient, eager.gradient)
        torch.testing.assert_close(step.weight_gradient, eager.weight_gradient)


def budgeted_step(budget: str | int, rng: str) -> DropoutStep:
    torch._dynamo.reset()
    options = {"rng": rng, "strict": True, "memory_budget": budget}
    compiled = torch.compile(dropped_product, backend="deepep", fullgraph=True, options=options)
    return dropout_step(compiled)


@pytest.mark.parametrize("rng", ["philox", "eager"])
def test_deepep_in_its_smallest_budget_uses_the_mask_of_forward(rng: str) -> None:
    whole = budgeted_step("1TiB", rng)
    with pytest.raises(MemoryBudgetError) as refused:
        budgeted_step(1, rng)
    with recording() as record:
        tight = budgeted_step(refused.value.smallest, rng)
    assert record.budgets[0].peak <= refused.value.smallest
    check_same_mask_in_backward(tight)
    assert torch.equal(tight.output, whole.output)
    torch.testing.assert_close(tight.gradient, whole.gradient)
    torch.testing.assert_close(tight.weight_gradient, whole.weight_gradient)
    if rng == "eager":
        eager = dropout_step(dropped_product)
        torch.testing.assert_close(tight.gradient, eager.gradient)
