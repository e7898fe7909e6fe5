"""The best choice that a solver has found so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .descent import Search, fit
from .problem import Problem, held_of, seconds_of
from .simplify import Simplified

EXACT = 1e-9
"""A relative gap that is no more than the last digits of solver and sums."""


@dataclass
class Incumbent:
    """The cheapest possible choice so far; what it costs is said by the original problem."""

    problem: Problem
    simplified: Simplified
    options: tuple[int, ...] | None = None
    seconds: float = math.inf

    def offer(self, options: Sequence[int]) -> bool:
        """Keeps a choice of the simplified problem where it is better; whether it is."""
        return self._keep(self.simplified.expand(options))

    def offer_start(self, options: Sequence[int]) -> None:
        """The user's choice: as it is, if possible, and to be made better."""
        self._keep(tuple(options))
        search = Search(self.simplified.problem, self.simplified.contract(options))
        if fit(search):
            self.offer(search.options)

    def _keep(self, options: tuple[int, ...]) -> bool:
        problem = self.problem
        if any(held_of(row, options) > row.limit for row in problem.rows):
            return False
        if any(len({options[group] for group in groups}) > 1 for groups in problem.alike):
            return False
        seconds = seconds_of(problem, options)
        if not seconds < self.seconds * (1.0 - 1e-12):
            return False
        self.options, self.seconds = options, seconds
        return True

    def is_within(self, bound: float, gap: float) -> bool:
        """Whether what was found costs no more than so much above a bound."""
        return self.seconds <= bound + max(gap, EXACT) * abs(bound)
