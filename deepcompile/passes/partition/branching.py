"""Branch and bound where a relaxation left groups open.

All groups at once would mostly be too many: so first those near an open one are decided anew,
while the others keep what the relaxation gave them (relaxation induced neighbourhoods, Danna et
al. 2005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bound import Bound
from .colours import Colours, no_colours
from .descent import Search, fit
from .incumbent import Incumbent
from .problem import Problem
from .program import program_of
from .relaxation import ROUNDED, Infeasible, search_whole
from .simplify import only
from .transport import Floats, Ints, Transport, transports_of

CORE_COLUMNS = 15_000
"""Of branch and bound around what the relaxation left open."""

ALL_COLUMNS = 6_000
"""Of branch and bound over all options; where operations are nearly tied, it takes long."""

REACHES = -1, 0, 1, 2, 3
"""How far around groups that a relaxation left open all is decided anew, in tensors. The first only
chooses among what has parts."""

NODES = 200
"""Of branch and bound."""

MOST_COLUMNS = 150_000
"""Programs with more are not tried after the first linear program."""


@dataclass(frozen=True, eq=False)
class Tried:
    """Colours whose linear program was solved.

    Attributes:
        colours: those.
        bound: what its prices say.
        parts: of the quotient's options in its optimum.
        rounded: the quotient's options that were made of them.
    """

    colours: Colours
    bound: Bound
    parts: Sequence[Floats]
    rounded: Sequence[int]

    def is_same(self, colours: Colours) -> bool:
        """Whether other colours lead to the same program."""
        mine, other = self.colours, colours
        return len(mine.quotient.costs) == len(other.quotient.costs) and mine.uses.max(
            initial=0
        ) == other.uses.max(initial=0)


def search_colours(
    problem: Problem, tried: Tried, gap: float, best: Incumbent
) -> tuple[bool, float]:
    """Branch and bound over colours: whether it found a better choice, and a bound.

    First searches decide anew only around groups that the relaxation left open; mostly that will
    do. The last leaves out only options that cannot be in a better choice than the best so far;
    what it finds bounds the problem where each colour is one group.
    """
    is_all = len(tried.colours.quotient.costs) == len(problem.costs)
    kept = _promising(tried, best.seconds - tried.bound.seconds)
    better = False
    for reach in REACHES:
        core = _Core.of(tried, _around(tried, kept, reach))
        if core.columns > CORE_COLUMNS:
            break
        improved, bound = _branch(problem, tried, core, gap, best)
        better = improved or better
        if best.is_within(tried.bound.seconds, gap):
            return better, -math.inf
        if reach >= 0 and not improved and best.is_within(bound, gap):
            break  # nothing better is near
    core = _Core.of(tried, kept)
    if core.columns > ALL_COLUMNS:
        return better, -math.inf
    again, bound = _branch(problem, tried, core, gap, best)
    return better or again, min(bound, best.seconds) if is_all else -math.inf


def _promising(tried: Tried, room: float) -> list[Ints]:
    """By group of the quotient, the options that cost no more than so much above the bound."""
    colours = tried.colours.groups
    first, counts = np.unique(colours, return_index=True, return_counts=True)[1:]
    kept = []
    for at, count in zip(first, counts, strict=True):
        more = tried.bound.more[at] * count
        kept.append(np.flatnonzero(more <= max(room, float(more.min()))))
    return kept


def _around(tried: Tried, kept: Sequence[Ints], reach: int) -> list[Ints]:
    """Of these options all for groups so near to an open one; for others what has a part.

    With a negative reach, for no group all.
    """
    quotient = tried.colours.quotient
    is_open = np.array([reach >= 0 and part.max() < 1.0 - ROUNDED for part in tried.parts])
    makers = np.array([quotient.values[use.value].maker for use in quotient.uses], np.int64)
    users = np.array([use.user for use in quotient.uses], np.int64)
    for _ in range(reach):
        near = is_open[makers] | is_open[users]
        is_open[makers[near]] = is_open[users[near]] = True
    made = []
    for group, part in enumerate(tried.parts):
        some = np.append(np.flatnonzero(part > ROUNDED), tried.rounded[group])
        made.append(np.unique(np.append(kept[group], some) if is_open[group] else some))
    return made


@dataclass(frozen=True, eq=False)
class _Core:
    """A quotient with some of its options, by group; and its uses."""

    kept: Sequence[Ints]
    problem: Problem
    transports: list[Transport]

    @classmethod
    def of(cls, tried: Tried, kept: Sequence[Ints]) -> _Core:
        """With these options."""
        smaller = only(tried.colours.quotient, kept)
        return cls(kept, smaller, transports_of(smaller, no_colours(smaller)))

    @property
    def columns(self) -> int:
        """About as many as its linear program has."""
        return sum(transport.seconds.size for transport in self.transports)


def _branch(
    problem: Problem, tried: Tried, core: _Core, gap: float, best: Incumbent
) -> tuple[bool, float]:
    """Branch and bound over some options: whether it found a better choice, and their bound."""
    program = program_of(core.problem, no_colours(core.problem), core.transports)
    try:
        parts, bound = search_whole(program, gap, NODES)
    except Infeasible:
        return False, math.inf
    if parts is None:
        return False, bound
    options = [int(some[np.argmax(p)]) for some, p in zip(core.kept, parts, strict=True)]
    better = best.offer(tried.colours.expand(options))
    search = Search(problem, tried.colours.expand(options))
    if fit(search):
        better = best.offer(search.options) or better
    return better, bound
