"""`memory_budget` with symbolic sizes: a plan for each bucket of sizes that a run meets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompile.backend import recording
from deepcompile.budget.report import BudgetReport
from deepcompile.errors import MemoryBudgetError
from tests.backend.budget_steps import Values, blocks, check_close, rows


def train(
    module: nn.Module,
    counts: Sequence[int],
    budget: int | str,
    prepare: Callable[[Tensor], None] = lambda x: None,
    **kwargs: Any,
) -> tuple[Values, list[BudgetReport]]:
    """Gradients summed over batches of so many rows, and what was planned."""
    torch._dynamo.reset()
    module = copy.deepcopy(module)
    options = {"strict": True, "memory_budget": budget}
    call = torch.compile(module, backend="deepep", options=options, **{"dynamic": True, **kwargs})
    torch.manual_seed(0)
    with recording() as record:
        for count in counts:
            x = rows(count=count)
            prepare(x)
            call(x).square().mean().backward()
    return {name: p.grad for name, p in module.named_parameters()}, record.budgets


def sizes(reports: Sequence[BudgetReport]) -> list[list[int]]:
    return [list(report.bucket.sizes.values()) for report in reports]


def smallest(module: nn.Module, count: int) -> int:
    with pytest.raises(MemoryBudgetError) as refused:
        train(module, [count], 1)
    return refused.value.smallest


@pytest.fixture(scope="module")
def budget() -> int:
    """The smallest for two blocks and 1024 rows."""
    return smallest(blocks(2), 1024)


@pytest.mark.slow
def test_sizes_beyond_a_bucket_get_a_plan_of_their_own(budget: int) -> None:
    module, counts = blocks(2), (300, 200, 512, 513, 1024)
    mine, reports = train(module, counts, budget)
    assert sizes(reports) == [[512], [1024]]
    assert [report.facts()["sizes"].popitem()[1] for report in reports] == [512, 1024]
    assert all(report.peak <= budget for report in reports)
    # The plan for the first sizes would not have done for the last ones.
    assert reports[0].planned is None
    assert reports[1].planned is not None
    check_close(mine, train(module, counts, "1TiB")[0])


def test_smaller_sizes_do_not_pay_for_larger_ones(budget: int) -> None:
    module = blocks(2)
    _, reports = train(module, (1000, 300), budget)
    assert sizes(reports) == [[1024], [512]]
    assert reports[1].planned is None
    # A plan that costs no time is for smaller sizes too.
    assert sizes(train(module, (1000, 300), "1TiB")[1]) == [[1024]]


@pytest.mark.slow
def test_a_budget_for_the_sizes_at_hand_is_enough() -> None:
    module = blocks(2)
    least = smallest(module, 1025)
    assert least < smallest(module, 2048)
    assert sizes(train(module, [1025], least)[1]) == [[1025]]
    with pytest.raises(MemoryBudgetError) as refused:
        train(module, [1025, 1500], least)
    assert refused.value.smallest > least


def test_declared_sizes_are_planned_for(budget: int) -> None:
    def declare(x: Tensor) -> None:
        torch._dynamo.mark_dynamic(x, 0, min=2, max=1000)

    _, reports = train(blocks(2), (100, 1000), budget, declare)
    assert sizes(reports) == [[1000]]
    assert reports[0].planned is not None


def test_numbers_have_no_buckets() -> None:
    _, reports = train(blocks(1), (100,), "1TiB", dynamic=False)
    assert sizes(reports) == [[]]
