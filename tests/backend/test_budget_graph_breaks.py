"""`memory_budget` of a model with graph breaks: one budget for all graphs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompile.backend import recording
from deepcompile.capture.torch_private import tracing_once_more
from deepcompile.errors import MemoryBudgetError
from deepcompile.recording import Recording
from tests.backend.budget_steps import Values, blocks, check_close, rows

TOLD = ".*the first step takes up to"


class Broken(nn.Module):
    """Two graphs of the same needs."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = blocks(2, drop=drop), blocks(2, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def steps(
    module: nn.Module, x: Tensor, budget: int | str, count: int = 3, **kwargs: Any
) -> tuple[Values, Recording]:
    """Gradients summed over some steps, and what was recorded."""
    torch._dynamo.reset()
    module = copy.deepcopy(module)
    options = {"strict": True, "memory_budget": budget}
    call = torch.compile(module, backend="deepep", options=options, **kwargs)
    torch.manual_seed(0)
    with recording() as record, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=TOLD)
        for _ in range(count):
            call(x).square().mean().backward()
    return {name: p.grad for name, p in module.named_parameters()}, record


def smallest(module: nn.Module, x: Tensor) -> int:
    """Of all graphs together: what the first needs is refused first."""
    budget = 1
    for _ in range(2):
        with pytest.raises(MemoryBudgetError) as refused:
            steps(module, x, budget, 1)
        budget = refused.value.smallest
    assert "a training step of all graphs needs at least" in str(refused.value)
    return budget


@pytest.fixture(scope="module")
def least() -> int:
    """The smallest budget of the model without dropout."""
    return smallest(Broken(), rows(count=512))


def test_graphs_leave_room_for_later_ones(least: int) -> None:
    check_shared(Broken(), least)


@pytest.mark.slow
def test_graphs_with_dropout() -> None:
    module = Broken(0.3)
    check_shared(module, smallest(module, rows(count=512)))


def check_shared(module: nn.Module, budget: int) -> None:
    x = rows(count=512)
    mine, record = steps(module, x, budget)
    met, again = record.budgets[:2], record.budgets[2:]
    # The first took the room of the second, which then was compiled as lean as can be.
    assert [report.exceeds for report in met] == [False, True]
    assert met[0].peak <= budget < met[1].peak
    assert again
    assert all(report.replanned and not report.exceeds for report in again)
    assert all(report.peak <= budget for report in again)
    if module.first[0].drop.p:
        check_close(mine, steps(module, x, "1TiB")[0])
        return
    for _ in range(3):
        module(x).square().mean().backward()
    check_close(mine, {name: p.grad for name, p in module.named_parameters()})


def test_a_first_step_over_the_budget_is_told(least: int) -> None:
    module, x = Broken(), rows(count=512)
    options = {"memory_budget": least}
    torch._dynamo.reset()
    call = torch.compile(module, backend="deepep", options=options)
    with recording() as record, pytest.warns(UserWarning, match=TOLD):
        call(x).sum().backward()
    facts = [fields for event, fields in record.events if event == "memory-budget"]
    assert [found["exceeds"] for found in facts] == [False, True]


def test_no_budget_below_the_smallest_is_taken(least: int) -> None:
    module, x = Broken(), rows(count=512)
    with pytest.raises(MemoryBudgetError) as refused:
        steps(module, x, least - 1, 1)
    assert (refused.value.budget, refused.value.smallest) == (least - 1, least)


def test_a_budget_that_is_not_needed_compiles_each_graph_once() -> None:
    _, record = steps(Broken(), rows(), "1TiB")
    assert len(record.budgets) == 2
    assert not any(report.replanned or report.planned for report in record.budgets)


@pytest.mark.slow
def test_a_forward_keeps_the_backward_that_it_was_compiled_with() -> None:
    """The third forward replaces the programs of the second, whose backward comes later."""
    module, x = Broken(), rows(count=512)

    def run(call: nn.Module) -> Values:
        losses = [call(x * factor).square().mean() for factor in (1, 2)]
        losses[0].backward()
        losses.append(call(x * 3).square().mean())
        (losses[1] + losses[2]).backward()
        return {name: p.grad for name, p in call.named_parameters()}

    def compiled(budget: int) -> tuple[Values, Recording]:
        torch._dynamo.reset()
        mine = copy.deepcopy(module)
        mine.compile(backend="deepep", options={"memory_budget": budget})
        with recording() as record, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run(mine), record

    least = smallest(module, x)
    with pytest.raises(MemoryBudgetError, match="2 graphs called 4 times") as refused:
        compiled(least)
    mine, record = compiled(refused.value.smallest)
    assert any(report.replanned for report in record.budgets)
    check_close(mine, run(module))


def test_a_graph_is_traced_again_in_the_modes_it_was_first_traced_in() -> None:
    """Another graph's call plans it anew, and that may be under autocast."""
    contexts = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        contexts.append(tracing_once_more(inputs))
        return gm

    call = torch.compile(nn.Linear(8, 8), backend=backend)

    def modes() -> tuple[Any, ...]:
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return *autocast, torch.is_grad_enabled(), torch.get_default_dtype()

    call(rows(8, 4))
    plain = modes()
    with torch.autocast("cpu", torch.float16):
        call(rows(8, 5))
        cast = modes()
        with contexts[0]():
            assert modes() == plain
        assert modes() == cast
    with torch.no_grad(), contexts[1]():
        assert modes() == cast
    assert modes() == plain


@pytest.mark.slow
def test_symbolic_sizes(least: int) -> None:
    module, x = Broken(), rows(count=512)
    mine, record = steps(module, x, least, dynamic=True)
    assert any(report.replanned for report in record.budgets)
    check_close(mine, steps(module, x, "1TiB")[0])
