"""Plans of one joint graph for any budget, by the programs that they become."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.fx import GraphModule, Node

from ..capture import torch_private
from ..passes.checkpoints.combine import Combination
from ..passes.checkpoints.emit import Recompute, written_out
from ..passes.checkpoints.forms import Form
from ..passes.checkpoints.joint import Joint, is_symbol, is_tangent
from ..passes.checkpoints.place import Options, Part, alternatives, fit, highest, lowest
from ..pipeline.collector import collector_paused
from .step import StepTimeline

Halves = tuple[GraphModule, GraphModule]
RUNGS = 96
"""Sizes that plans are made for, between the least and the most that a step can use."""
LOWEST = 4
"""Of them, how many are tried for the least that a step needs."""


@dataclass(frozen=True)
class Planned:
    """One plan for a training step, and what the programs made of it hold.

    Attributes:
        size: bytes it was made for, beside what is pinned.
        options: what could have been chosen.
        combination: what was chosen for each part of the model.
        parts: the same as sets of tensors.
        saved: tensors that forward keeps for backward, and their bytes.
        recomputed: what backward computes again.
        halves: forward and backward.
        step: the simulation of their programs.
    """

    size: int
    options: Options
    combination: Combination
    parts: list[Part]
    saved: dict[Node, int]
    recomputed: frozenset[Node]
    halves: Halves
    step: StepTimeline


class StepPlanner:
    """Plans of one joint graph for any budget.

    Plans are made for a fixed ladder of sizes, and a budget takes the highest that fits when
    simulated. So a larger budget never gets a slower plan, whatever the error of the estimates.
    """

    def __init__(
        self,
        joint: GraphModule,
        facts: Joint,
        simulate: Callable[[Halves, Joint], StepTimeline],
        static: Sequence[int] = (),
        forms: Sequence[Form] = (),
    ) -> None:
        self.joint = joint
        self.facts = facts
        self.static = static
        self.forms = forms
        self.trial_seconds = 0.0
        self.plan_seconds = 0.0
        self.trials = 0
        self._simulate = simulate
        self._planned: dict[int, Planned] = {}
        self._by_choice: dict[object, Planned] = {}

    @cached_property
    @collector_paused()
    def options(self) -> list[Options]:
        """What each part of the model can keep, for each way to cut it into parts."""
        started = time.perf_counter()
        found = alternatives(self.facts, self.forms)
        self.plan_seconds += time.perf_counter() - started
        return found

    @cached_property
    def ladder(self) -> list[int]:
        """Sizes in bytes, growing: from what the leanest plan needs to what the quickest does."""
        least = lowest(self.options)
        most = highest(self.options)
        ratio = (max(most, least + 1) / max(least, 1)) ** (1 / RUNGS)
        return sorted({least, most, *(int(least * ratio**rung) for rung in range(1, RUNGS))})

    @cached_property
    def expected(self) -> list[float]:
        """Bytes that programs will hold, by rung, given what those of the middle one do."""
        middle = len(self.ladder) // 2
        error = self.planned(middle).step.peak / max(self.ladder[middle], 1)
        return [size * error for size in self.ladder]

    def within(self, room: int) -> Planned | None:
        """The quickest plan whose programs hold at most `room` bytes beside what is pinned.

        Rungs are tried one by one, upwards or downwards, from where the room would be by what is
        expected: where a smaller room ends is on the way of a larger one, so that more room is
        never slower.
        """
        last = len(self.ladder) - 1
        rung = min(bisect.bisect_right(self.expected, room), last)
        if self._fits(rung, room):
            while rung < last and self._fits(rung + 1, room):
                rung += 1
            return self.planned(rung)
        while rung:
            rung -= 1
            if self._fits(rung, room):
                return self.planned(rung)
        return next((p for p in self.lowest_rungs if p.step.peak <= room), None)

    def _fits(self, rung: int, room: int) -> bool:
        return self.planned(rung).step.peak <= room

    @property
    def lowest_rungs(self) -> list[Planned]:
        """Plans among which is the one that needs least: an estimate may be off by a rung."""
        found = [self.planned(rung) for rung in range(min(LOWEST, len(self.ladder)))]
        return sorted(found, key=lambda planned: planned.step.peak)

    @collector_paused()
    def planned(self, rung: int) -> Planned:
        """The plan for one size of the ladder."""
        found = self._planned.get(rung)
        if found is not None:
            return found
        size = self.ladder[rung]
        started = time.perf_counter()
        options, combination = fit(self.options, size)
        choice = self.options.index(options), combination.chosen
        known = self._by_choice.get(choice)
        if known is not None:
            self.plan_seconds += time.perf_counter() - started
            self._planned[rung] = known
            return known
        parts = options.chosen(combination)
        recomputed = options.recompute(parts)
        halves = _divide(self.joint, self.facts, recomputed, self.static)
        self.plan_seconds += time.perf_counter() - started
        started = time.perf_counter()
        step = self._simulate(halves, self.facts)
        self.trial_seconds += time.perf_counter() - started
        self.trials += 1
        walk = recomputed.walk
        saved = {node: self.facts.nbytes(node) for node in recomputed.saved}
        again = frozenset(walk.origin[e] for e in walk.nodes if isinstance(e, tuple))
        found = Planned(size, options, combination, parts, saved, again, halves, step)
        self._planned[rung] = self._by_choice[choice] = found
        return found


def _divide(
    joint: GraphModule, facts: Joint, recomputed: Recompute, static: Sequence[int]
) -> Halves:
    given = [node for node in recomputed.inputs if not is_tangent(node)]
    tensors = [node for node in given if not is_symbol(node)]
    symbols = [node for node in facts.position if is_symbol(node)]
    with written_out(facts, recomputed):
        return torch_private.divide_joint_graph(
            joint, [*tensors, *recomputed.saved], symbols, facts.forward_outputs, static
        )
