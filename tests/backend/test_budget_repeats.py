"""`memory_budget` of graphs that run several times in a step, such as equal blocks one by one."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepcompile import explain
from deepcompile.backend import recording
from deepcompile.budget.ledger import ledger_of
from deepcompile.budget.planned_graph import PlannedGraph
from deepcompile.errors import MemoryBudgetError
from deepcompile.recording import Recording
from deepcompile.runtime.arena import POOL
from deepcompile.runtime.recycle import OUTPUTS
from tests.backend.budget_steps import Block, Values, check_close, rows
from tests.runtime.tracked import peak_bytes

TOLD = ".*this step takes up to"
BLOCKS = 6


class Trained:
    """Blocks that are compiled one by one for one budget.

    Args:
        blocks: the calls of a step, in order.
        budget: bytes.
    """

    def __init__(self, blocks: Sequence[nn.Module], budget: int) -> None:
        torch._dynamo.reset()
        self.blocks = nn.ModuleList(blocks)
        self.blocks.zero_grad()
        self.options = {"memory_budget": budget, "strict": True}
        self.calls = [
            torch.compile(block, backend="deepep", options=self.options) for block in blocks
        ]

    def forward(self, x: Tensor) -> Tensor:
        for call in self.calls:
            x = call(x)
        return x

    def step(self, x: Tensor, gradient: Tensor) -> None:
        self.forward(x).backward(gradient)

    def steps(self, x: Tensor, gradient: Tensor, count: int) -> None:
        for _ in range(count):
            self.step(x, gradient)

    @property
    def graphs(self) -> list[PlannedGraph]:
        return ledger_of(self.options)._alive()

    @property
    def often(self) -> list[tuple[int, int]]:
        """Of each graph how often it runs in a step, as seen, and how many forwards wait now."""
        return [(graph.runs.most, graph.runs.waiting) for graph in self.graphs]

    @property
    def values(self) -> Values:
        found = {name: p.grad.clone() for name, p in self.blocks.named_parameters()}
        self.blocks.zero_grad()
        return found


def given() -> tuple[Tensor, Tensor]:
    return rows(count=512), rows(count=512)


def separate() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Block(64) for _ in range(BLOCKS)]


def looped() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Block(64)] * BLOCKS


def refused(blocks: Sequence[nn.Module], budget: int) -> int | None:
    """What two steps need, if that is more than the budget: later graphs and steps ask for more."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trained(blocks, budget).steps(*given(), 2)
    except MemoryBudgetError as error:
        return error.smallest
    return None


def least_of(blocks: Sequence[nn.Module]) -> int:
    """The smallest budget that is never refused."""
    budget = 1
    while (needed := refused(blocks, budget)) is not None:
        assert needed > budget
        budget = needed
    return budget


@pytest.fixture(scope="module")
def least() -> int:
    """The smallest budget of separate blocks."""
    return least_of(separate())


def measured(trained: Trained, x: Tensor, gradient: Tensor) -> int:
    """Bytes that a step takes beside what is pinned."""
    trained.blocks.zero_grad()
    POOL.clear()
    OUTPUTS.clear()
    return peak_bytes(lambda: trained.step(x, gradient))


def check_held(
    blocks: Sequence[nn.Module], budget: int, sets: int, part: float = 0.8
) -> tuple[int, Recording]:
    """From the second step on it fits, measured too; gradients are those without a budget."""
    x, gradient = given()
    free = Trained(blocks, 1 << 40)
    free.step(x, gradient)
    reference = free.values
    with recording() as record:
        trained = Trained(blocks, budget)
        with pytest.warns(UserWarning, match=TOLD):
            trained.step(x, gradient)
        check_close(trained.values, reference)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="deepcompile")
            trained.step(x, gradient)
            check_close(trained.values, reference)
            taken = measured(trained, x, gradient)
    final = [report for report in record.budgets if not report.replaced]
    assert sum(report.calls for report in final) == BLOCKS
    assert any(report.replanned for report in final)
    assert max(report.peak for report in final) <= budget
    parameters = sum(p.nbytes for p in blocks[0].parameters())
    pinned = x.nbytes + sets * 3 * parameters
    assert sum(report.pinned.own + report.further for report in final) == pinned
    assert taken <= (budget - pinned) * 1.05
    # The step runs as planned, not by luck.
    assert taken >= part * (max(report.peak for report in final) - pinned)
    return taken, record


def test_equal_blocks_compiled_one_by_one(least: int) -> None:
    x, gradient = given()
    free = Trained(separate(), 1 << 40)
    free.step(x, gradient)
    taken, record = check_held(separate(), least, BLOCKS)
    assert taken < measured(free, x, gradient) / 2
    # The first step was told, with the bytes.
    (told,) = [fields for event, fields in record.events if event == "memory-repeated"]
    assert (told["calls"], told["planned"], told["budget"]) == (2, 1, least)
    assert told["peak"] > least


def test_steps_that_fit_in_no_plan_are_refused_with_the_smallest_budget(least: int) -> None:
    x, gradient = given()
    trained = Trained(separate(), least - 1)
    with pytest.warns(UserWarning, match=TOLD):
        trained.step(x, gradient)
    for _ in range(2):
        with pytest.raises(MemoryBudgetError, match=f"called {BLOCKS} times") as refused:
            trained.step(x, gradient)
        assert refused.value.smallest == least


@pytest.mark.slow
def test_one_block_in_a_loop_has_its_parameters_once(least: int) -> None:
    budget = least_of(looped())
    parameters = sum(p.nbytes for p in Block(64).parameters())
    assert budget < least - (BLOCKS - 2) * 3 * parameters
    check_held(looped(), budget + 4 * parameters, 1)


class Broken(Block):
    """Two graphs, which alternate when it is called several times."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        torch._dynamo.graph_break()
        return torch.tanh(self.narrow(torch.relu(self.wide(x))))


@pytest.mark.slow
def test_graphs_that_alternate() -> None:
    blocks = [Broken(64)] * (BLOCKS // 2)
    free = Trained(blocks, 1 << 40)
    free.steps(*given(), 2)
    peak = max(graph.compiled.report.peak for graph in free.graphs)
    # Each of them is taken to be the last.
    check_held(blocks, int(peak * 0.6), 1, 0.6)


def test_a_budget_that_is_not_needed_compiles_nothing_again() -> None:
    x, gradient = given()
    trained = Trained(separate(), 1 << 40)
    with recording() as record, warnings.catch_warnings():
        warnings.filterwarnings("error", message="deepcompile")
        trained.steps(x, gradient, 3)
    assert [report.calls for report in record.budgets] == [1, BLOCKS - 1]
    assert not any(report.replanned for report in record.budgets)
    assert sum(report.further for report in record.budgets) > 0


def test_runs_without_a_backward_do_not_count() -> None:
    """Accumulation, inference, outputs that are dropped and errors, between steps and in them."""
    x, gradient = given()
    block = Block(64)
    trained = Trained([block], 1 << 40)
    trained.steps(x, gradient, 3)  # accumulation: each forward has its backward
    with torch.no_grad():
        kept = [trained.forward(x) for _ in range(3)]
    assert trained.often == [(1, 0)]
    for _ in range(3):
        trained.forward(x)
    with pytest.raises(ValueError, match="the loss"):
        fail_behind(lambda: trained.forward(x))
    assert trained.often == [(1, 0)]
    dropped = [trained.forward(x) for _ in range(3)]
    assert trained.often == [(1, 3)]
    del dropped, kept
    assert trained.often == [(1, 0)]
    trained.step(x, gradient)
    assert trained.often == [(1, 0)]


def fail_behind(forward: Callable[[], Tensor]) -> None:
    output = forward()
    raise ValueError(f"the loss of {output.shape} failed")


def test_forwards_that_wait_together_count_together() -> None:
    x, gradient = given()
    trained = Trained([Block(64)], 1 << 40)
    outputs = [trained.forward(x * factor) for factor in (1, 2, 3)]
    assert trained.often == [(1, 3)]
    thread = threading.Thread(target=lambda: sum(outputs).backward(gradient))
    thread.start()
    thread.join()
    assert trained.often == [(3, 0)]


def test_a_graph_that_is_kept_for_another_backward_waits_on() -> None:
    x, gradient = given()
    with torch._functorch.config.patch(donated_buffer=False):
        trained = Trained([Block(64)], 1 << 40)
        output = trained.forward(x)
        output.backward(gradient, retain_graph=True)
        assert trained.often == [(1, 1)]
        output.backward(gradient)
    assert trained.often == [(1, 0)]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_of_the_user_hold_nothing(use_reentrant: bool) -> None:
    x, gradient = given()
    blocks = separate()
    trained = Trained(blocks, 1 << 40)
    for _ in range(2):
        y = x.clone().requires_grad_()
        for call in trained.calls:
            y = checkpoint(call, y, use_reentrant=use_reentrant)
        assert all(waiting == 0 for _, waiting in trained.often)
        y.backward(gradient)
    assert set(trained.often) == {(1, 0)}


def test_models_have_budgets_of_their_own_and_copies_count() -> None:
    x, gradient = given()
    torch._dynamo.reset()
    block = Block(64)
    options: list[dict[str, Any]] = [{"memory_budget": 1 << 40}, {"memory_budget": 1 << 41}]
    models = [torch.compile(block, backend="deepep", options=each) for each in options]
    for _ in range(2):
        for model in models:
            model(x).backward(gradient)
    mine = [ledger_of(each)._alive() for each in options]
    assert [[(g.calls, g.parameters.copies()) for g in graphs] for graphs in mine] == [[(1, 1)]] * 2
    other = copy.deepcopy(block)
    torch.compile(other, backend="deepep", options=options[0])(x).backward(gradient)
    ((graph,), _) = mine
    assert graph.parameters.copies() == 2
    assert graph.own() == graph.compiled.report.pinned.own + 3 * sum(
        p.nbytes for p in block.parameters()
    )
    del other
    gc.collect()
    assert graph.parameters.copies() == 1


class Loop(nn.Module):
    """Calls a block in a loop that Dynamo does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(64)

    @torch._dynamo.disable(recursive=False)  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.block(x)
        return x


def test_explain_says_how_often_a_graph_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCOMPILE_MEMORY_BUDGET", "1TiB")
    found = explain(Loop(), rows(count=64).requires_grad_())
    assert [budget.calls for budget in found.budgets] == [4]
    assert "called 4 times in a step" in str(found)
