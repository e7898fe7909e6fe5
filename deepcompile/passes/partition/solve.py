"""The cheapest choice of placements, and how far from the cheapest it can be.

The linear program of colours comes first (`relaxation.py`). Its optimum bounds what any choice
costs, and in what transformers give it is nearly always whole. Where it is not, its largest parts
are rounded and made better one by one (`descent.py`). If that leaves more than the gap asked for,
finer colours follow, then every group for itself, then branch and bound. All is decided by the
numbers of the problem and by limits on counts, nothing by clocks or by the order of groups.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ...errors import PartitionError
from ..checkpoints.unsolved import Unsolved
from .bound import Bound, bound_of
from .colours import Colours, colours_of, no_colours
from .descent import Search, cheapest, fit, greedy
from .problem import MemoryRow, Problem, Solution, held_of, seconds_of
from .relaxation import Infeasible, Relaxed, program_of, relax, search_whole
from .simplify import Simplified, only, simplify
from .transport import Floats, Ints, Transport, transports_of

ROUNDS = 3, 6
"""Rounds of colours, one after the other until the gap is small enough."""

MOST_COLUMNS = 150_000
"""Linear programs with more are not tried after the first."""

CORE_COLUMNS = 15_000
"""Of the first branch and bound."""

NODES = 200
"""Of branch and bound."""

MOST_NAMED = 5
"""Groups that an error names."""

EXACT = 1e-9
"""A relative gap that is no more than the last digits of solver and sums."""


def solve(problem: Problem, *, gap: float = 0.01, start: Sequence[int] | None = None) -> Solution:
    """The cheapest choice that keeps within all memory rows.

    The bound holds for the problem as it is, whatever was found and however: it comes from prices
    by linear duality, or from branch and bound over all groups. Without SciPy, or where its solver
    fails, it is the sum of the cheapest options, and the choice is that of a descent from a few
    starts.

    Args:
        problem: what there is to choose.
        gap: how much more than the bound, relative, is good enough to stop at.
        start: a choice to begin from besides the solver's own; the answer is never worse.

    Raises:
        PartitionError: constraints contradict each other, or no choice keeps within a memory row.
        ValueError: groups that must choose alike have different numbers of options.
    """
    if not problem.costs:
        return Solution((), 0.0, 0.0, tuple(row.fixed for row in problem.rows), "lp")
    clock = _Clock()
    with clock("simplify"):
        simplified = simplify(problem)
    best = _Best(problem, simplified)
    if start is not None:
        best.offer_start(start)
    try:
        found = _by_programs(simplified.problem, gap, best, clock)
    except Infeasible:
        raise _does_not_fit(problem) from None
    except Unsolved as error:
        with clock("descent"):
            found = replace(_by_descent(simplified.problem, best), fallback=str(error))
    if best.options is None:
        raise _does_not_fit(problem)
    return replace(
        found,
        options=best.options,
        seconds=best.seconds,
        bound=min(found.bound, best.seconds),
        held=tuple(held_of(row, best.options) for row in problem.rows),
        timings=dict(clock.seconds),
    )


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class _Best:
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


def _by_programs(problem: Problem, gap: float, best: _Best, clock: _Clock) -> Solution:
    """Fills `best`; what it returns says how, and the bound.

    Raises:
        Infeasible: no choice is possible.
        Unsolved: without SciPy, or when the solver fails.
    """
    bound = -math.inf
    tried, method = None, "lp"
    for rounds in (*ROUNDS, None):
        with clock("colours"):
            colours = no_colours(problem) if rounds is None else colours_of(problem, rounds)
            transports = transports_of(problem, colours)
        if tried and tried.is_same(colours):
            continue
        if tried and sum(t.seconds.size for t in transports) > MOST_COLUMNS:
            break
        with clock("build"):
            program = program_of(problem, colours, transports)
        with clock("lp"):
            relaxed = relax(transports, program)
        with clock("bound"):
            tried = _Tried(colours, bound_of(problem, colours, transports, relaxed.prices))
            bound = max(bound, tried.bound.seconds)
        with clock("rounding"):
            _round(problem, colours, relaxed, best, bound)
        if best.is_within(bound, gap):
            break
        with clock("milp"):
            better, branched = _by_branching(problem, tried, gap, best)
        bound = max(bound, branched)
        method = "milp" if better else method
        if best.is_within(bound, gap):
            break
    assert tried is not None
    return Solution((), 0.0, bound, method=method, colours=len(tried.colours.quotient.costs))


@dataclass(frozen=True, eq=False)
class _Tried:
    """Colours whose linear program was solved."""

    colours: Colours
    bound: Bound

    def is_same(self, colours: Colours) -> bool:
        """Whether other colours lead to the same program."""
        mine, other = self.colours, colours
        return len(mine.quotient.costs) == len(other.quotient.costs) and mine.uses.max(
            initial=0
        ) == other.uses.max(initial=0)


def _round(problem: Problem, colours: Colours, relaxed: Relaxed, best: _Best, bound: float) -> None:
    """Offers the largest parts, and what descent makes of them."""
    options = [int(np.argmax(part)) for part in relaxed.parts]
    best.offer(colours.expand(options))
    if best.is_within(bound, EXACT):
        return
    search = Search(colours.quotient, options)
    if fit(search):
        options = search.options
        best.offer(colours.expand(options))
    search = Search(problem, colours.expand(options))
    if fit(search):
        best.offer(search.options)


def _by_branching(problem: Problem, tried: _Tried, gap: float, best: _Best) -> tuple[bool, float]:
    """Branch and bound over colours: whether it found a better choice, and a bound.

    Options that cannot be in a better choice than the best so far are left out. Where that leaves
    many, a first search has only those that the relaxation says cost least more; mostly they will
    do. What is found bounds the problem only where each colour is one group.
    """
    is_all = len(tried.colours.quotient.costs) == len(problem.costs)
    room = best.seconds - tried.bound.seconds
    core = _core(problem, tried, room, CORE_COLUMNS)
    better = False
    if core.room < room:
        better, _ = _branch(problem, tried, core, gap, best)
        if best.is_within(tried.bound.seconds, gap):
            return better, -math.inf
        core = _core(problem, tried, room, MOST_COLUMNS)
    if core.room < room:
        return better, -math.inf
    again, bound = _branch(problem, tried, core, gap, best)
    return better or again, min(bound, best.seconds) if is_all else -math.inf


@dataclass(frozen=True, eq=False)
class _Core:
    """A quotient with few options.

    Attributes:
        room: seconds; options that cost more above the bound are left out.
        kept: by group, the options of the quotient that are left.
        problem: with these.
        transports: of its uses.
    """

    room: float
    kept: list[Ints]
    problem: Problem
    transports: list[Transport]


def _core(problem: Problem, tried: _Tried, room: float, columns: int) -> _Core:
    """The options of as much room as so many columns allow."""
    first, counts = np.unique(tried.colours.groups, return_index=True, return_counts=True)[1:]
    more = [tried.bound.more[at] * count for at, count in zip(first, counts, strict=True)]
    if not math.isfinite(room):
        room = max(float(own[np.isfinite(own)].max()) for own in more)
    while True:
        kept = [np.flatnonzero(own <= max(room, float(own.min()))) for own in more]
        smaller = only(tried.colours.quotient, kept)
        transports = transports_of(smaller, no_colours(smaller))
        if room <= 0.0 or sum(t.seconds.size for t in transports) <= columns:
            return _Core(room, kept, smaller, transports)
        room = room / 2.0 if room > 1e-12 else 0.0


def _branch(
    problem: Problem, tried: _Tried, core: _Core, gap: float, best: _Best
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


def _by_descent(problem: Problem, best: _Best) -> Solution:
    """Fills `best` without any solver: over colours, and over all groups where that fails."""
    for colours in (colours_of(problem, ROUNDS[0]), no_colours(problem)):
        quotient = colours.quotient
        order = np.argsort(np.unique(colours.groups, return_index=True)[1]).tolist()
        for search in (
            greedy(quotient, order),
            greedy(quotient, reversed(order)),
            Search(quotient, cheapest(quotient)),
        ):
            fit(search)
            best.offer(colours.expand(search.options))
        if best.options is not None:
            break
    bound = sum(float(costs.min()) for costs in problem.costs)
    return Solution((), 0.0, bound, method="descent", colours=len(quotient.costs))


def _does_not_fit(problem: Problem) -> PartitionError:
    """Says which memory row is too small, or that there is none to blame."""
    for row in problem.rows:
        least = _least(replace(problem, rows=()), row)
        if least is not None and held_of(row, least.options) > row.limit:
            return _too_small(problem, row, least)
    for number, row in enumerate(problem.rows):
        others = [other for at, other in enumerate(problem.rows) if at != number]
        least = _least(replace(problem, rows=others), row)
        if least is not None and held_of(row, least.options) > row.limit:
            return _too_small(problem, row, least)
    return PartitionError(
        "no placement was found that all operations and all limits of memory allow; "
        "loosen a constraint or a limit"
    )


def _least(problem: Problem, row: MemoryRow) -> Solution | None:
    """The choice with the fewest bytes in one row within all others; None where none is found."""
    costs = [
        np.where(np.isfinite(costs), row.bytes.get(group, np.zeros(len(costs))), np.inf)
        for group, costs in enumerate(problem.costs)
    ]
    known: dict[int, Floats] = {}
    for value in problem.values:
        known.setdefault(id(value.moves), np.where(np.isfinite(value.moves), 0.0, np.inf))
    values = [replace(value, moves=known[id(value.moves)]) for value in problem.values]
    try:
        return solve(replace(problem, costs=costs, values=values), gap=0.0)
    except PartitionError:
        return None


def _too_small(problem: Problem, row: MemoryRow, least: Solution) -> PartitionError:
    held = sorted(
        ((float(sizes[least.options[group]]), group) for group, sizes in row.bytes.items()),
        key=lambda pair: (-pair[0], pair[1]),
    )
    most = [(size, group) for size, group in held[:MOST_NAMED] if size > 0]
    names = [
        f"{repr(problem.labels[group]) if problem.labels else f'group {group}'} ({size:,.0f})"
        for size, group in most
    ]
    return PartitionError(
        f"{row.name or 'a moment'} cannot be kept within {row.limit:,.0f} bytes a rank: it takes "
        f"{held_of(row, least.options):,.0f} at least; most of it hold {', '.join(names)}. "
        "Raise the limit or add ranks."
    )
