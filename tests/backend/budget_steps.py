"""Steps of small modules with and without a budget, for the tests of `memory_budget`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompile.backend import recording
from deepcompile.budget.split import BudgetReport
from deepcompile.errors import MemoryBudgetError
from deepcompile.recording import Recording

TOLERANCE = 1e-5
"""Of the largest gradient of the model."""

Loss = Callable[[nn.Module, Any], Tensor]
Values = dict[str, Tensor]


def square_loss(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).float().square().mean()


def step(
    module: nn.Module, x: Any, loss: Loss = square_loss, steps: int = 1, **options: Any
) -> tuple[Values, Recording]:
    """The loss of the last step, and gradients and buffers by name after it, with one seed."""
    torch._dynamo.reset()
    module = copy.deepcopy(module)
    call = torch.compile(loss, backend="deepep", options={"strict": True, **options})
    torch.manual_seed(0)
    with recording() as record:
        for _ in range(steps):
            result = call(module, x)
            result.backward()
    values = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    values |= {f"buffer {n}": b.clone() for n, b in module.named_buffers()}
    return values | {"loss": result.detach()}, record


def smallest(module: nn.Module, x: Any, loss: Loss = square_loss, **options: Any) -> int:
    with pytest.raises(MemoryBudgetError) as refused:
        step(module, x, loss, memory_budget=1, **options)
    return refused.value.smallest


def report_of(record: Recording) -> BudgetReport:
    *others, report = record.budgets
    # Torch 2.11 compiles some graphs again for the second step; the outcome is one.
    assert all(other.peak == report.peak for other in others)
    return report


def check_close(mine: Values, reference: Values, tolerance: float = TOLERANCE) -> None:
    assert mine.keys() == reference.keys()
    largest = max(v.abs().max().item() for v in reference.values() if v.is_floating_point())
    for name, value in reference.items():
        error = (mine[name].double() - value.double()).abs().max().item()
        assert error <= tolerance * largest, name


class Block(nn.Module):
    def __init__(self, width: int, drop: float = 0.0) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.narrow(self.drop(nn.functional.gelu(self.wide(x)))))


def blocks(count: int = 4, width: int = 64, drop: float = 0.0) -> nn.Module:
    return nn.Sequential(*(Block(width, drop) for _ in range(count)))


def rows(width: int = 64, count: int = 256) -> Tensor:
    return torch.randn(count, width)
