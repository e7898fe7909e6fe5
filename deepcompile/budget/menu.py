"""The ways in which the step of one graph can run, to choose from when graphs share a budget."""

from __future__ import annotations

from collections.abc import Sequence

from .planner import LEAN, LOWEST, RUNGS, Planned, StepPlanner
from .ways import Way, way_of

_STRIDE = 8
"""Of the planner's sizes every so manieth is tried: each costs a compile for trial."""
_LEAN_STRIDE = 32
"""The same for plans that save as few bytes as can be."""


class Menu:
    """The ways in which the step of one graph can run; they are found when somebody asks.

    Args:
        known: ways that were simulated already, first those that cost least.
        planner: of the graph.
    """

    def __init__(self, known: Sequence[Way], planner: StepPlanner) -> None:
        self._known = tuple(known)
        self._planner = planner
        self._ways: tuple[Way, ...] | None = None

    @property
    def ways(self) -> tuple[Way, ...]:
        """All of them, each once."""
        if self._ways is None:
            last = len(self._planner.ladder) - 1
            rungs = {min(rung, last) for rung in (*range(LOWEST), *range(0, RUNGS + 1, _STRIDE))}
            lean = {LEAN + min(rung, last) for rung in range(0, RUNGS + 1, _LEAN_STRIDE)}
            plans = [self._planner.planned(rung) for rung in sorted(rungs, reverse=True)]
            plans += [self._planner.planned(number) for number in sorted(lean)]
            found = [self._way(planned) for planned in (*plans, *self._planner.lowest_plans)]
            self._ways = tuple(dict.fromkeys([*self._known, *found]))
            self._planner.forget()
        return self._ways

    @property
    def leanest(self) -> Way:
        """The one that needs least while the graph runs."""
        return min(self.ways, key=lambda way: (max(way.forward, way.backward), way.saved))

    @staticmethod
    def _way(planned: Planned) -> Way:
        return way_of(planned.step, planned.number, True, planned.combination.seconds)
