"""Ways to run a step under `memory_budget`: gradients are those of the step without one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from deepcompile.backend import recording
from deepcompile.errors import MemoryBudgetError
from deepcompile.recording import Recording
from tests.backend.budget_steps import Values, blocks, check_close, rows

pytestmark = pytest.mark.slow


class TestWays:
    """Ways to run a step, each in the smallest budget of the plain step."""

    @pytest.fixture
    def module(self) -> nn.Module:
        return blocks(drop=0.2)

    def gradients(
        self, module: nn.Module, way: Callable[[Callable[[Tensor], Tensor]], None], **how: Any
    ) -> tuple[Values, Values, Recording]:
        """Of a way to run the module, without a budget and in the smallest one."""
        with pytest.raises(MemoryBudgetError) as refused:
            torch.compile(module, backend="deepep", options={"memory_budget": 1}, **how)(rows())
        budget = refused.value.smallest
        found = []
        for options in ({}, {"memory_budget": budget}):
            torch._dynamo.reset()
            mine = copy.deepcopy(module)
            call = torch.compile(mine, backend="deepep", options={"strict": True, **options}, **how)
            torch.manual_seed(1)
            with recording() as record:
                way(call)
            found.append({name: p.grad for name, p in mine.named_parameters()})
        assert record.budgets
        assert all(report.peak <= budget for report in record.budgets)
        return found[0], found[1], record

    def test_a_graph_that_is_retained(self, module: nn.Module) -> None:
        def way(call: Callable[[Tensor], Tensor]) -> None:
            loss = call(rows()).square().mean()
            loss.backward(retain_graph=True)
            loss.backward()

        plain, budgeted, _ = self.gradients(module, way)
        check_close(budgeted, plain)

    @pytest.mark.slow
    def test_two_calls_before_their_gradients(self, module: nn.Module) -> None:
        def way(call: Callable[[Tensor], Tensor]) -> None:
            first, second = call(rows()), call(rows())
            (first.square().mean() + second.sin().mean()).backward()

        plain, budgeted, _ = self.gradients(module, way)
        check_close(budgeted, plain)

    def test_saved_tensors_that_hooks_pack(self, module: nn.Module) -> None:
        packed: list[int] = []

        def pack(saved: Tensor) -> Tensor:
            packed.append(saved.numel())
            return saved.detach().clone()

        def way(call: Callable[[Tensor], Tensor]) -> None:
            with saved_tensors_hooks(pack, lambda saved: saved.clone()):
                result = call(rows()).square().mean()
            result.backward()

        plain, budgeted, _ = self.gradients(module, way)
        assert packed
        check_close(budgeted, plain)

    @pytest.mark.slow
    def test_sizes_that_change(self, module: nn.Module) -> None:
        def way(call: Callable[[Tensor], Tensor]) -> None:
            for count in (256, 100):
                call(rows(count=count)).square().mean().backward()

        plain, budgeted, record = self.gradients(module, way, dynamic=True)
        assert record.budgets[0].planned is not None
        assert record.graphs[0].spec.sizes
        check_close(budgeted, plain)
