"""What programs hold takes the place of estimates; and estimates that need no such lesson."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.torch_budget import joint_graph
from deepcompile.backend import _Compiler
from deepcompile.budget.planner import LEAN, StepPlanner
from deepcompile.budget.refine import Excess, Figures, homes, quickest, smallest
from deepcompile.budget.split import BudgetedSplit
from deepcompile.cost.rates import rates_of_cpu
from deepcompile.options import Options
from deepcompile.passes.checkpoints.joint import Joint

WIDTH, ROWS, DEPTH = 64, 1024, 6


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm(x))))


@pytest.fixture(scope="module")
def planner() -> StepPlanner:
    # What goes into a layer is no input of the step: layers are equal.
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Layer() for _ in range(DEPTH)))
    batch = {"x": torch.zeros(ROWS, WIDTH)}
    joint, _, kwargs = joint_graph(model, batch, lambda model, batch: model(batch["x"]).sum())
    facts = Joint(joint.graph, kwargs["num_fwd_outputs"], rates_of_cpu(1))
    trial = _Compiler(Options())._trial_program
    simulate = BudgetedSplit(1, facts.rates, trial, lambda report, menu: None).simulate
    return StepPlanner(joint, facts, simulate, tuple(kwargs["static_lifetime_input_indices"]))


def test_estimates_for_layers_are_what_programs_hold(planner: StepPlanner) -> None:
    cut = planner.options[0]
    assert cut.segments.repeats
    low, high = smallest([Figures(cut)]), planner.ladder[-1]
    for share in (0.3, 0.5, 0.7, 0.9):
        found = quickest([Figures(cut)], int(low + (high - low) * share))
        assert found is not None
        planned = planner._plan(*found, low, -1)
        assert planned.step.peak == pytest.approx(planned.combination.peak, rel=0.01)


def test_what_was_seen_takes_the_place_of_an_estimate(planner: StepPlanner) -> None:
    figures = Figures(planner.options[0])
    before = figures.layers()
    planned = planner.planned(len(planner.ladder) // 2)
    figures.see(planned.combination, planned.step, homes(planned.halves[1].graph.nodes))
    assert {start for start, _ in figures.seen} == {s for s, _ in planned.combination.chosen}
    after, saved = figures.layers(), 0
    for start, number in planned.combination.chosen:
        assert saved + after[start][number].peak <= planned.step.peak
        saved += after[start][number].saved
    assert [[c.seconds for c in row] for row in after] == [[c.seconds for c in r] for r in before]


def test_a_choice_that_held_more_loses(planner: StepPlanner) -> None:
    figures = Figures(planner.options[0])
    size = (planner.ladder[0] + planner.ladder[-1]) // 2
    found = quickest([figures], size)
    assert found is not None
    for start, number in found[1].chosen:
        figures.seen[start, number] = Excess(size, size)
    other = quickest([figures], size)
    assert other is None or not set(other[1].chosen) & set(found[1].chosen)
    assert Figures(planner.options[0]).copy().seen == {}


def test_unseen_choices_have_the_benefit_of_the_doubt(planner: StepPlanner) -> None:
    figures = Figures(planner.options[0])
    least = smallest([figures])
    figures.seen[2, 0] = Excess(-1000, -1000)
    assert smallest([figures]) <= least
    figures.seen[2, 0] = Excess(1000, 1000)
    assert smallest([figures]) == least


def test_the_lowest_plans_are_in_order_and_never_quicker_than_those_above(
    planner: StepPlanner,
) -> None:
    plans = planner.lowest_plans
    peaks = [planned.step.peak for planned in plans]
    assert peaks == sorted(peaks)
    above = planner.planned(len(planner.ladder) // 2).combination.seconds
    assert all(planned.combination.seconds >= above for planned in plans)
    for planned in plans:
        again = planner.planned(planned.number)
        assert again.combination.chosen == planned.combination.chosen


def test_every_room_gets_the_best_it_can_and_no_less_than_a_smaller_one(
    planner: StepPlanner,
) -> None:
    low = planner.lowest_plans[0].step.peak
    high = planner.planned(len(planner.ladder) - 1).step.peak
    assert planner.within(low - 1) is None
    seconds = []
    for number in range(8):
        room = low + (high - low) * number // 7
        planned = planner.within(room)
        assert planned is not None
        assert planned.step.peak <= room
        assert planned.combination.bound is not None
        assert planned.combination.bound <= planned.combination.seconds
        seconds.append(planned.combination.seconds)
    assert seconds == sorted(seconds, reverse=True)


def test_lean_plans_leave_fewer_bytes_for_backward_in_more_time(planner: StepPlanner) -> None:
    last = len(planner.ladder) - 1
    for rung in (last // 2, last):
        quick, lean = planner.planned(rung), planner.planned(LEAN + rung)
        assert lean.number == LEAN + rung
        assert sum(lean.saved.values()) < sum(quick.saved.values())
        assert lean.combination.seconds > quick.combination.seconds
        assert lean.combination.peak <= planner.ladder[rung]
