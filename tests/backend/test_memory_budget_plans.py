"""Plans for many budgets, by the model alone: nothing is built or run."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pytest
from torch.fx import Graph, GraphModule

from benchmarks.memory_models import NAMES, build
from benchmarks.torch_budget import joint_graph
from deepcompile.backend import _Compiler
from deepcompile.budget.planner import LOWEST, StepPlanner
from deepcompile.budget.refine import quickest
from deepcompile.budget.split import BudgetedSplit
from deepcompile.cost.rates import rates_of
from deepcompile.options import Options
from deepcompile.passes.checkpoints.joint import Joint

pytestmark = pytest.mark.slow

BUDGETS = 20


def planner_of(name: str) -> StepPlanner:
    model = build(name, "small")
    joint, _, kwargs = joint_graph(model.module, model.batch, model.loss)
    rates = rates_of("cpu", None, 1)
    facts = Joint(joint.graph, kwargs["num_fwd_outputs"], rates)
    trial = _Compiler(Options())._trial_program
    simulate = BudgetedSplit(1, rates, trial, lambda report, menu: None).simulate
    return StepPlanner(joint, facts, simulate, tuple(kwargs["static_lifetime_input_indices"]))


@pytest.mark.parametrize(
    "name",
    [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_plans_fit_their_budgets(name: str) -> None:
    planner = planner_of(name)
    before = str(planner.joint.graph)
    least = planner.lowest_plans[0].step.peak
    # Small tensors share a block: a small model may hold less when it computes nothing again.
    most = max(least, planner.planned(len(planner.ladder) - 1).step.peak)
    assert planner.within(least) is not None
    for number in range(BUDGETS):
        room = least + (most - least) * number // (BUDGETS - 1)
        planned = planner.within(room)
        assert planned is not None
        assert planned.step.peak <= room
        combination = planned.combination
        assert combination.peak <= planned.size
        assert combination.bound is not None
        assert combination.bound <= combination.seconds
    # Copies are written into the joint graph only while it is divided.
    assert str(planner.joint.graph) == before
    planner.joint.graph.lint()


@pytest.mark.parametrize(
    "name",
    [name if name == "resnet" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_more_room_by_estimate_is_never_slower(name: str) -> None:
    planner = planner_of(name)
    fitting = [quickest(planner.figures, size) for size in planner.ladder]
    seconds = [found[1].seconds for found in fitting if found is not None]
    assert len(seconds) == len(planner.ladder)
    assert seconds == sorted(seconds, reverse=True)
    assert quickest(planner.figures, planner.ladder[0] - 1) is None


class Rungs(StepPlanner):
    """A planner whose plans need what a table says."""

    def __init__(self, peaks: list[int]) -> None:
        super().__init__(GraphModule({}, _empty_graph()), None, None)  # type: ignore[arg-type]
        self.peaks = peaks

    @cached_property
    def _learnt(self) -> tuple[list[Any], bool]:  # type: ignore[override]
        return [], False

    @cached_property
    def ladder(self) -> list[int]:  # type: ignore[override]
        return [100 + 10 * rung for rung in range(len(self.peaks))]

    def planned(self, rung: int) -> Any:
        combination = SimpleNamespace(bound=0.0, seconds=-rung)
        step = SimpleNamespace(peak=self.peaks[rung])
        return SimpleNamespace(step=step, rung=rung, combination=combination)

    @cached_property
    def lowest_plans(self) -> list[Any]:  # type: ignore[override]
        return [self.planned(rung) for rung in range(LOWEST)]


def _empty_graph() -> Graph:
    graph = Graph()
    graph.output(())
    return graph


@pytest.mark.parametrize("off", [0, 25, 60])
def test_the_highest_rung_is_found_where_estimates_are_off_by_as_much(off: int) -> None:
    planner = Rungs([100 + 10 * rung + off for rung in range(30)])
    assert planner.within(99 + off) is None
    for rung, peak in enumerate(planner.peaks):
        planned = planner.within(peak)
        assert planned is not None
        assert planned.rung == rung


def test_more_room_is_never_slower() -> None:
    # A real course: programs of plans for growing sizes do not need ever more.
    planner = Rungs([100, 130, 110, 120, 170, 130, 140, 210, 150, 190, 180, 240, 200, 250])
    rungs = [planner.within(room).rung for room in range(100, 260)]
    assert rungs == sorted(rungs)


def test_no_plan_needs_less_than_the_one_a_refusal_names() -> None:
    planner = planner_of("llama")
    least = planner.lowest_plans[0].step.peak
    assert min(planner.planned(rung).step.peak for rung in (0, 2, 3)) >= least
