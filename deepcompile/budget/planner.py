"""Plans of one joint graph for any budget, by the programs that they become."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from torch.fx import GraphModule, Node

from ..capture import torch_private
from ..passes.checkpoints.combine import Combination, combine
from ..passes.checkpoints.emit import Recompute, written_out
from ..passes.checkpoints.forms import Form
from ..passes.checkpoints.joint import Joint, is_symbol, is_tangent
from ..passes.checkpoints.place import Options, Part, alternatives, finer
from ..passes.checkpoints.transfers import Transfer
from ..passes.checkpoints.unsolved import Unsolved
from ..pipeline.collector import collector_paused
from .refine import Figures, homes, largest, leanest, quickest, smallest
from .step import StepTimeline

T = TypeVar("T")
Halves = tuple[GraphModule, GraphModule]
RUNGS = 192
"""Sizes that plans are made for, between the least and the most that a step can use."""
LOWEST = 4
"""Of them, how many are tried for the least that a step needs."""
LEAN = 1000
"""From this number on are plans for the same sizes that save as few bytes as can be."""
TRUSTED = 0.02
"""The part of an estimate by which programs may be off it."""
LESSONS = (0.25, 0.75, *(0.0, 0.05, 0.1, 0.15) * 3)
"""Where between the least and the most plans are made to learn from, when they are off by more."""
ROUNDS = 10
"""How often the least is looked for by what programs were seen to hold."""
BETWEEN = 4
"""Sizes between the least found and the lowest rungs, for which plans are made by that."""
NEAR = 0.002
"""The part of a peak that is not worth another round."""


@dataclass(frozen=True)
class Planned:
    """One plan for a training step, and what the programs made of it hold.

    Attributes:
        number: what `StepPlanner.planned` gives it for.
        size: bytes it was made for, beside what is pinned.
        options: what could have been chosen.
        combination: what was chosen for each part of the model.
        parts: the same as sets of tensors.
        saved: tensors that forward keeps for backward, and their bytes.
        recomputed: what backward computes again.
        transfers: copies to and from the host.
        halves: forward and backward.
        step: the simulation of their programs.
    """

    number: int
    size: int
    options: Options
    combination: Combination
    parts: list[Part]
    saved: dict[Node, int]
    recomputed: frozenset[Node]
    transfers: tuple[Transfer, ...]
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
    def options(self) -> list[Options]:
        """What each part of the model can keep, for each way to cut it into parts."""
        return self._timed(lambda: alternatives(self.facts, self.forms))

    @property
    def figures(self) -> list[Figures]:
        """What parts of the model cost under each choice."""
        return self._learnt[0]

    @cached_property
    def _learnt(self) -> tuple[list[Figures], bool]:
        """The figures, and whether programs hold what they say.

        Where the programs of a first plan, one for each way to cut the model, are off the estimate
        by more than `TRUSTED`, more plans are made, always for the same sizes, and what they hold
        is learnt.
        """
        found = [Figures(options) for options in self.options]
        trusted = True
        for cut in ([known] for known in found):
            low, high = smallest(cut), largest(cut)
            first = self._learn(cut, low + max(high - low, 0) // 2)
            error = abs(first.step.peak - first.combination.peak)
            trusted &= error <= TRUSTED * first.combination.peak
        if trusted:
            return found, True
        for share in LESSONS:
            low, high = smallest(found), largest(found)
            self._learn(found, low + int(max(high - low, 0) * share))
        return found, False

    def _learn(self, figures: Sequence[Figures], size: int, number: int = -1) -> Planned:
        """Make a plan for a size, and take in what its programs hold."""
        planned = self._best(figures, size, number)
        assert planned is not None
        self._see(figures, planned)
        return planned

    def _best(self, figures: Sequence[Figures], size: int, number: int) -> Planned | None:
        best = leanest if number >= LEAN else quickest
        choice = self._timed(lambda: best(figures, size))
        return None if choice is None else self._plan(*choice, size, number)

    @cached_property
    def ladder(self) -> list[int]:
        """Sizes in bytes, growing: from what the leanest plan needs to what the quickest does."""
        figures = self.figures
        least, most = self._timed(lambda: (smallest(figures), largest(figures)))
        ratio = (max(most, least + 1) / max(least, 1)) ** (1 / RUNGS)
        between = (int(least * ratio**rung) for rung in range(1, RUNGS))
        return sorted({least, most, *between})

    @cached_property
    def expected(self) -> list[float]:
        """Bytes that programs will hold, by rung.

        Where estimates are not trusted, given what those of the middle one do.
        """
        if self._learnt[1]:
            return [float(size) for size in self.ladder]
        middle = len(self.ladder) // 2
        error = self.planned(middle).step.peak / max(self.ladder[middle], 1)
        return [size * error for size in self.ladder]

    def within(self, room: int) -> Planned | None:
        """The quickest plan whose programs hold at most `room` bytes beside what is pinned.

        Rungs are tried one by one, upwards or downwards, from where the room would be by what is
        expected: where a smaller room ends is on the way of a larger one, so that more room is
        never slower.
        """
        found = self._within(room)
        return None if found is None else self._with_bound(found)

    def bound(self, room: int) -> float:
        """Seconds that no combination undercuts that needs `room` bytes by what is known.

        Where that is an estimate, programs may hold less: no fewer bytes are taken than those of
        the plan that `within` gives.

        Raises:
            Unsolved: when that is not known for a way to cut the model.
        """
        rung = self._rung(room)
        if rung >= LOWEST:
            room = max(room, self.planned(rung).combination.peak)
        return self._bound(rung, room)

    def _bound(self, rung: int, size: int) -> float:
        figures = self.figures if rung >= LOWEST else self._lowest[1]
        found = [combine(known.layers(), size) for known in figures]
        fitting = [combination for combination in found if combination is not None]
        for combination in fitting:
            if combination.bound is None:
                raise Unsolved(combination.no_bound)
        return min((c.bound for c in fitting if c.bound is not None), default=0.0)

    def _with_bound(self, planned: Planned) -> Planned:
        """The same plan, with what no plan for its size undercuts."""
        combination = planned.combination
        if combination.bound is not None:
            return planned
        try:
            # What programs hold may by now be known to be less.
            bound = self._timed(lambda: self._bound(planned.number, planned.size))
            bound = min(bound, combination.seconds)
        except Unsolved as error:
            return replace(planned, combination=replace(combination, no_bound=str(error)))
        return replace(planned, combination=replace(combination, bound=bound))

    def _within(self, room: int) -> Planned | None:
        rung = self._rung(room)
        if rung >= LOWEST:
            return self.planned(rung)
        fitting = [planned for planned in self.lowest_plans if planned.step.peak <= room]
        return min(fitting, key=lambda planned: planned.combination.seconds, default=None)

    def _rung(self, room: int) -> int:
        """The highest rung that fits, of those tried; -1 when none does."""
        last = len(self.ladder) - 1
        rung = self._first_tried(room)
        if self._fits(rung, room):
            while rung < last and self._fits(rung + 1, room):
                rung += 1
        else:
            while rung >= 0 and not self._fits(rung, room):
                rung -= 1
        return rung

    def forget(self) -> None:
        """Let go of the graphs of all plans so far; what is asked for again is made again."""
        self._planned.clear()
        self._by_choice.clear()
        self.__dict__.pop("_lowest", None)

    def at(self, size: int) -> Planned | None:
        """The plan for a size between rungs; its programs may need a little more or less."""
        return self._best(self.figures, size, len(self.ladder))

    def _first_tried(self, room: int) -> int:
        return min(bisect.bisect_right(self.expected, room), len(self.ladder) - 1)

    def _fits(self, rung: int, room: int) -> bool:
        return self.planned(rung).step.peak <= room

    @property
    def lowest_plans(self) -> list[Planned]:
        """Plans for the least that a step can use and little more, the least first.

        Those of the lowest rungs, and others that come of learning from those, of cuts within
        layers too. None is quicker than the rung above, whom that fits may have all of them; but
        for plans of higher rungs, of which those whom they fit are given one anyway.
        """
        return self._lowest[0]

    @cached_property
    def _lowest(self) -> tuple[list[Planned], list[Figures]]:
        """The lowest plans, and what is known of choices when they are made."""
        rungs = range(min(LOWEST, len(self.ladder)))
        found = [self.planned(rung) for rung in rungs]
        figures = [known.copy() for known in self.figures]
        for planned in found:
            self._see(figures, planned)
        figures += self._timed(lambda: [*map(Figures, finer(self.options[0], self.forms))])

        def learn(figures: Sequence[Figures], size: int) -> None:
            found.append(self._learn(figures, size, -len(found)))

        for known in figures:
            if not known.seen:
                learn([known], smallest([known]))
        for _ in range(ROUNDS):
            size = smallest(figures)
            if size >= min(planned.step.peak for planned in found) * (1 - NEAR):
                break
            learn(figures, size)
        high = self.ladder[len(rungs) - 1]
        for number in range(BETWEEN):
            low = smallest(figures)
            learn(figures, low + max(high - low, 0) * number // BETWEEN)
        above = quickest(self.figures, self.ladder[min(LOWEST, len(self.ladder) - 1)])
        assert above is not None
        found = [p for p in found if p.combination.seconds >= above[1].seconds]
        least = min(planned.step.peak for planned in found)
        for rung in reversed(range(LOWEST, self._first_tried(least - 1) + 1)):
            if self._fits(rung, least - 1):  # estimates may be so far off
                found.append(self.planned(rung))
                least = found[-1].step.peak
        return sorted(found, key=lambda planned: planned.step.peak), figures

    def _see(self, figures: Sequence[Figures], planned: Planned) -> None:
        (known,) = (known for known in figures if known.options is planned.options)
        known.see(planned.combination, planned.step, homes(planned.halves[1].graph.nodes))

    def planned(self, number: int) -> Planned:
        """The plan for one size of the ladder, or below 0 one of the other lowest plans.

        From `LEAN` on the plan for a size that saves the fewest bytes: for graphs that have those
        of others beside them.

        Raises:
            LookupError: when planning a graph again has not given the lowest plans of before.
        """
        if number < 0:
            for planned in self.lowest_plans:
                if planned.number == number:
                    return planned
            raise LookupError(f"planned again, a graph has no plan {number}")
        found = self._planned.get(number)
        if found is None:
            found = self._best(self.figures, self.ladder[number % LEAN], number)
            assert found is not None
            self._planned[number] = found
        return found

    def _timed(self, work: Callable[[], T]) -> T:
        """Work that counts as planning."""
        started = time.perf_counter()
        try:
            with collector_paused():
                return work()
        finally:
            self.plan_seconds += time.perf_counter() - started

    @collector_paused()
    def _plan(self, options: Options, combination: Combination, size: int, number: int) -> Planned:
        parts = options.chosen(combination)
        # Copies start as early as there is room: then plans for other sizes are not the same.
        copies = self.facts.rates.overlaps and any(map(options.uses_host, parts))
        room = max(size, combination.peak) if copies else 0
        choice = id(options), combination.chosen, room
        known = self._by_choice.get(choice)
        if known is not None:
            return replace(known, number=number)
        recomputed, halves, step = self._try(options, parts, room)
        least = max(room, step.undelayed.peak if step.undelayed else 0)
        if copies and step.peak > least:
            # The estimate saw room that the programs do not have.
            recomputed, halves, step = self._try(options, parts, room - (step.peak - least))
            if step.peak > least:
                recomputed, halves, step = self._try(options, parts, 0)
        walk = recomputed.walk
        saved = {node: self.facts.nbytes(node) for node in recomputed.saved}
        again = frozenset(walk.origin[e] for e in walk.nodes if isinstance(e, tuple))
        found = Planned(
            number, size, options, combination, parts, saved, again,
            tuple(recomputed.transfers), halves, step,
        )  # fmt: skip
        self._by_choice[choice] = found
        return found

    def _try(
        self, options: Options, parts: Sequence[Part], room: int
    ) -> tuple[Recompute, Halves, StepTimeline]:
        """A plan as graphs, with what their programs hold; see `Options.placed` for `room`."""
        recomputed = self._timed(lambda: options.placed(parts, room))
        halves = self._timed(lambda: _divide(self.joint, self.facts, recomputed, self.static))
        started = time.perf_counter()
        step = self._simulate(halves, self.facts)
        self.trial_seconds += time.perf_counter() - started
        self.trials += 1
        return recomputed, halves, step


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
