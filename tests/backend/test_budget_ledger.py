"""Graphs of one model share a budget: which of them run in one step, and what each gets."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deepcompile.budget.ledger import Ledger, ledger_of
from deepcompile.budget.planned_graph import PlannedGraph
from deepcompile.budget.report import BudgetReport
from deepcompile.budget.shares import Share
from deepcompile.budget.step import Pinned
from deepcompile.budget.ways import Way
from deepcompile.cost.rates import rates_of_cpu
from deepcompile.errors import MemoryBudgetError
from deepcompile.recording import recording

BUDGET = 100


def way(saved: int, peak: int, seconds: float = 0.0) -> Way:
    return Way(None, True, saved, peak, peak, seconds)


RICH, LEAN = way(40, 50), way(10, 30, 1.0)


@dataclass
class Report(BudgetReport):
    """Of a plan that needs no program."""

    way: Way = RICH

    def set_peak(self, later: int) -> None:
        way = self.way
        self.peak = self.pinned.total + max(way.forward, way.backward + later)


def graph(
    frame: str,
    *ways: Way,
    own: int = 5,
    gradients: int = 0,
    events: list[dict[str, Any]] | None = None,
) -> PlannedGraph:
    """A graph that runs in the first of these ways, and could in the others."""

    def compiled(share: Share) -> Any:
        pinned = Pinned(own, 0, share.others, gradients, copy=own)
        report = Report(BUDGET, pinned, rates_of_cpu(1), way=share.way or ways[0])
        report.beside(share)

        def note(event: str, **fields: Any) -> None:
            if events is not None:
                events.append({"event": event, **fields})

        return SimpleNamespace(report=report, menu=SimpleNamespace(ways=ways), note=note)

    return PlannedGraph(frame, compiled(Share()), compiled, nullcontext)


def forward(ledger: Ledger, *graphs: PlannedGraph, args: Sequence[Any] = ()) -> list[Any]:
    """Calls, and for each what says that its backward is yet to come."""
    waiting = []
    for each in graphs:
        if each not in ledger._alive():
            ledger.enter(each)
        ledger.called(each, args)
        waiting.append((each, each.runs.begin()))
    return waiting


def backward(waiting: list[Any]) -> None:
    for each, run in reversed(waiting):
        each.runs.begin_backward(run)


def step(ledger: Ledger, *graphs: PlannedGraph) -> None:
    backward(forward(ledger, *graphs))


def test_a_graph_is_planned_beside_what_those_before_it_in_the_step_hold() -> None:
    ledger = Ledger()
    first, second = graph("first", RICH), graph("second", LEAN)
    assert ledger.share("first") == Share()
    waiting = forward(ledger, first)
    assert ledger.share("second") == Share(45, first=False)
    waiting += forward(ledger, second)
    assert ledger.share("third") == Share(60, first=False)
    backward(waiting)
    # A new version of the first begins a step; the second is there, but has saved nothing yet.
    assert ledger.share("first") == Share(5)


def test_what_nobody_can_call_any_more_holds_nothing() -> None:
    ledger = Ledger()
    first = graph("first", RICH)
    waiting = forward(ledger, first)
    del first, waiting
    gc.collect()
    assert ledger.share("second") == Share()


def test_graphs_that_do_not_fit_together_are_planned_again_when_a_step_begins() -> None:
    ledger = Ledger()
    first, second = graph("first", RICH, LEAN), graph("second", RICH, LEAN, own=20)
    step(ledger, first, second)
    assert (first.way, second.way) == (RICH, RICH)
    step(ledger, first, second)
    assert sorted([first.way.seconds, second.way.seconds]) == [0.0, 1.0]
    ways = first.way, second.way
    step(ledger, first, second)
    assert (first.way, second.way) == ways


def test_graphs_that_fit_stay_as_they_are() -> None:
    ledger = Ledger()
    graphs = graph("first", RICH, LEAN), graph("second", LEAN, LEAN)
    for each in graphs:
        each._again = lambda share: pytest.fail("compiled again")
    step(ledger, *graphs)
    step(ledger, *graphs)
    lonely = graph("first", LEAN, RICH)
    lonely._again = lambda share: pytest.fail("compiled again")
    ledger = Ledger()
    step(ledger, lonely)
    step(ledger, lonely)


def test_a_plan_for_several_steps_never_needs_more_than_before() -> None:
    ledger = Ledger()
    first, second, other = (
        graph("first", RICH, LEAN),
        graph("second", RICH, own=20),
        graph("second", LEAN),
    )
    step(ledger, first, second)
    step(ledger, first)
    assert first.way == LEAN
    step(ledger, other, first)  # beside a leaner version of the second the first could be rich
    assert first.way == LEAN


def test_threads_that_call_at_once_plan_once() -> None:
    ledger = Ledger()
    first, second = graph("first", RICH, LEAN), graph("second", RICH, LEAN, own=20)
    step(ledger, first, second)
    again, compiled = first._again, []
    for each in (first, second):
        each._again = lambda share: (compiled.append(share), again(share))[1]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ledger.called(first), range(200)))
    assert len(compiled) == 1


def test_steps_that_fit_in_no_plan_are_refused_each_time() -> None:
    ledger = Ledger()
    first, second = graph("first", RICH), graph("second", RICH, own=20)
    step(ledger, first, second)
    for _ in range(2):
        with pytest.raises(MemoryBudgetError, match="2 graphs") as refused:
            ledger.called(first)
        assert (refused.value.budget, refused.value.smallest) == (BUDGET, 5 + 20 + 40 + 50)


def test_a_graph_that_runs_more_often_is_planned_again_before_the_next_step() -> None:
    ledger, events = Ledger(), []
    only = graph("only", RICH, LEAN, events=events)
    step(ledger, only)
    with pytest.warns(UserWarning, match="takes up to 135 bytes .* has run 3 times"):
        waiting = forward(ledger, only, only, only, only)
    backward(waiting)
    assert events == [
        {"event": "memory-repeated", "calls": 3, "planned": 1, "peak": 135, "budget": BUDGET}
    ]
    assert only.way == RICH
    waiting = forward(ledger, only)
    assert (only.way, only.compiled.report.calls) == (LEAN, 4)
    assert only.compiled.report.peak == 5 + 3 * LEAN.saved + LEAN.forward
    backward([*waiting, *forward(ledger, *[only] * 3)])
    step(ledger, only)  # fewer calls stay planned for
    assert (only.way, only.compiled.report.calls, len(events)) == (LEAN, 4, 1)


def test_a_graph_that_grows_may_need_more_at_its_highest_moment() -> None:
    """A plan that others may count on stays, unless there is no other."""
    ledger = Ledger()
    tight = way(5, 45, 2.0)
    only = graph("only", RICH, LEAN, tight)
    for calls, expected in ((2, RICH), (3, LEAN), (9, tight)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step(ledger, *[only] * calls)
        waiting = forward(ledger, only)
        assert only.way == expected
        backward(waiting)
    with pytest.warns(UserWarning, match="planned to run 9 times"):
        step(ledger, *[only] * 30)
    with pytest.raises(MemoryBudgetError, match="1 graph called 30 times") as refused:
        ledger.called(only)
    assert refused.value.smallest == 5 + 29 * 5 + 45


def test_parameters_count_once_and_those_of_other_calls_too() -> None:
    ledger = Ledger()
    shared, others = nn.Parameter(torch.zeros(4)), [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    first, second = graph("block", LEAN), graph("block", LEAN)
    waiting = forward(ledger, first, args=[shared])
    for each in (shared, *others):
        waiting += forward(ledger, second, args=[torch.zeros(1), each])
    assert (first.own(), second.own(), second.own(first.parameters.ids)) == (5, 20, 15)
    assert ledger.share("next") == Share(20 + 5 * 10, first=False)
    del others, each
    backward(waiting)
    assert second.own() == 5


def test_a_plan_that_exceeds_its_share_is_told() -> None:
    ledger, events = Ledger(), []
    first, second = graph("first", RICH, LEAN, events=events), graph("second", RICH, own=20)
    again = first._again
    first._again = lambda share: again(replace(share, way=replace(LEAN, forward=33, saved=11)))
    step(ledger, first, second)
    with pytest.warns(UserWarning, match="up to 3 bytes more than its share"):
        step(ledger, first, second)
    (event,) = events
    assert (event["event"], event["more"]) == ("memory-share-exceeded", 3)


def test_one_call_of_compile_has_one_ledger() -> None:
    options = {"memory_budget": "1GiB"}
    assert ledger_of(options) is ledger_of(options)
    assert ledger_of(dict(options)) is not ledger_of(options)


def test_models_one_after_the_other_do_not_count_for_each_other() -> None:
    options = {"memory_budget": 1 << 40}
    with recording() as record:
        for width in (32, 64):
            model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
            compiled = torch.compile(model, backend="deepep", options=options)
            compiled(torch.randn(4, width)).sum().backward()
            del model, compiled
            torch._dynamo.reset()
            gc.collect()
    assert [report.pinned.others for report in record.budgets] == [0, 0]
