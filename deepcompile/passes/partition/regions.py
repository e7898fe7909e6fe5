"""A better choice region by region: all of one is decided anew while the rest stays.

Large neighbourhood search (Shaw 1998) over the quotient. A region is what is nearest to a group,
across tensors, as far as its options stay few enough for branch and bound; regions are taken in the
order of groups until every group was in one that changed nothing. Where the linear program mixes
two choices that are alike in cost, the largest parts of neighbours may not go together: that is
what regions mend, which single changes cannot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..checkpoints.unsolved import Unsolved
from .colours import Colours, no_colours
from .descent import Search, fit
from .incumbent import Incumbent
from .problem import Problem, held_of, seconds_of
from .program import program_of
from .relaxation import Infeasible, search_whole
from .simplify import only
from .transport import Ints, transports_of

OPTIONS = 3300
"""Of all groups of a region."""

NODES = 50
"""Of branch and bound in a region."""

NEAR = 5e-4
"""Of the optimum of a region, relative to the whole: so near is good enough."""

PASSES = 2
"""Over all groups."""


def improve(
    problem: Problem,
    colours: Colours,
    options: Sequence[int],
    best: Incumbent,
    bound: float,
    gap: float,
) -> None:
    """Offers better choices until one is within the gap of the bound or no region changes.

    Args:
        problem: all of it.
        colours: of the problem.
        options: of the quotient; nothing is done where they exceed a row.
        best: what they are offered to.
        bound: seconds that no choice undercuts.
        gap: relative.
    """
    quotient, now = colours.quotient, list(options)
    if any(held_of(row, now) > row.limit for row in quotient.rows):
        return
    near = _neighbours(quotient)
    seconds = seconds_of(quotient, now)
    for _ in range(PASSES):
        left = dict.fromkeys(range(len(now)))
        changed = False
        while left:
            region = _region(quotient, near, next(iter(left)))
            for group in region:
                left.pop(group, None)
            found = _decided_anew(quotient, now, region)
            if found is None or not seconds_of(quotient, found) < seconds * (1.0 - 1e-9):
                continue
            now, seconds, changed = found, seconds_of(quotient, found), True
            best.offer(colours.expand(now))
            if best.is_within(bound, gap):
                return
        if not changed:
            break
    search = Search(problem, colours.expand(now))
    if fit(search):
        best.offer(search.options)


def _neighbours(problem: Problem) -> list[list[int]]:
    found: list[set[int]] = [set() for _ in problem.costs]
    for use in problem.uses:
        maker = problem.values[use.value].maker
        found[maker].add(use.user)
        found[use.user].add(maker)
    return [sorted(groups) for groups in found]


def _region(problem: Problem, near: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Groups around one, the nearest first."""
    region, seen = [seed], {seed}
    count = len(problem.costs[seed])
    waiting = deque([seed])
    while waiting:
        for group in near[waiting.popleft()]:
            if group in seen:
                continue
            count += len(problem.costs[group])
            if count > OPTIONS:
                return region
            seen.add(group)
            region.append(group)
            waiting.append(group)
    return region


def _decided_anew(
    problem: Problem, options: Sequence[int], region: Sequence[int]
) -> list[int] | None:
    """The cheapest choice that differs in a region only; None where none is found."""
    kept: list[Ints] = [np.array([option]) for option in options]
    for group in region:
        kept[group] = np.arange(len(problem.costs[group]))
    smaller = only(problem, kept)
    alone = no_colours(smaller)
    try:
        program = program_of(smaller, alone, transports_of(smaller, alone))
        parts, _ = search_whole(program, NEAR, NODES)
    except (Infeasible, Unsolved):
        return None  # it was only for a better choice
    if parts is None:
        return None
    return [int(some[np.argmax(part)]) for some, part in zip(kept, parts, strict=True)]
