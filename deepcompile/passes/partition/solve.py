"""The cheapest choice of placements, and how far from the cheapest it can be.

The linear program of colours comes first (`program.py`). Its optimum bounds what any choice
costs, and in what transformers give it is often whole. Where it is not, its largest parts are
rounded and made better one by one (`descent.py`), then region by region (`regions.py`). If that
leaves more than the gap asked for, and a limit of memory binds, a program with prices for bytes in
its place is rounded (`pricing.py`). Then branch and bound follows (`branching.py`), then the same
with finer colours, then with every group for itself. All is decided by the numbers of the problem
and by limits on counts, nothing by clocks; the programs do not depend on the order of groups.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ...errors import PartitionError
from ..checkpoints.unsolved import Unsolved
from .bound import bound_of
from .branching import MOST_COLUMNS, Tried, search_colours
from .colours import Colours, colours_of, no_colours
from .descent import Search, cheapest, fit, greedy
from .incumbent import EXACT, Incumbent
from .pricing import relax_priced
from .problem import MemoryRow, Problem, Solution, held_of
from .program import program_of
from .regions import improve
from .relaxation import Infeasible, Relaxed, relax
from .simplify import simplify
from .transport import Floats, Transport, transports_of

ROUNDS = 4, 6
"""Rounds of colours, one after the other until the gap is small enough."""

MOST_SHARED = 400_000
"""Moves, of all uses, above which programs of three axes do without those that are shared."""

MOST_NAMED = 5
"""Groups that an error names."""


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
    best = Incumbent(problem, simplified)
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


def _by_programs(problem: Problem, gap: float, best: Incumbent, clock: _Clock) -> Solution:
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
        is_vast = sum(t.seconds.size for t in transports) > MOST_SHARED
        try:
            with clock("lp"):
                relaxed = _relax(problem, colours, transports, is_vast)
        except Infeasible:
            if best.options is None:
                raise
            raise Unsolved("HiGHS finds nothing that fits, but something is known") from None
        except Unsolved:
            if tried is None:
                raise
            break  # what coarser colours gave stays
        with clock("bound"):
            priced = bound_of(problem, colours, transports, relaxed.prices)
            bound = max(bound, priced.seconds)
        with clock("rounding"):
            if is_vast:
                relaxed = _unshared(problem, colours, transports, relaxed)
            rounded = _round(problem, colours, relaxed, best, bound)
            tried = Tried(colours, priced, relaxed.parts, rounded)
        if best.is_within(bound, gap):
            break
        if not is_vast:
            with clock("regions"):
                improve(problem, colours, rounded, best, bound, gap)
            if best.is_within(bound, gap):
                break
        if relaxed.prices.rows.any() and not is_vast:
            with clock("priced"):
                _round_priced(problem, colours, transports, relaxed, best)
            if best.is_within(bound, gap):
                break
        with clock("milp"):
            better, branched = search_colours(problem, tried, gap, best)
        bound = max(bound, branched)
        method = "milp" if better else method
        if best.is_within(bound, gap):
            break
    assert tried is not None
    return Solution((), 0.0, bound, method=method, colours=len(tried.colours.quotient.costs))


def _relax(
    problem: Problem, colours: Colours, transports: Sequence[Transport], is_vast: bool
) -> Relaxed:
    """The optimum of the linear program, or of one with far fewer columns that bounds it."""
    if is_vast:
        return relax(transports, program_of(problem, colours, transports, {}, split=True))
    return relax(transports, program_of(problem, colours, transports))


def _unshared(
    problem: Problem, colours: Colours, transports: Sequence[Transport], relaxed: Relaxed
) -> Relaxed:
    """With the parts of the program where nothing is shared: they are of dearer moves, but true."""
    try:
        some = relax(transports, program_of(problem, colours, transports, {}))
    except Unsolved:
        return relaxed  # it was only for a better choice
    return replace(relaxed, parts=some.parts)


def _round_priced(
    problem: Problem,
    colours: Colours,
    transports: Sequence[Transport],
    relaxed: Relaxed,
    best: Incumbent,
) -> None:
    """Offers what the largest parts are where limits have become prices."""
    try:
        finer, priced = relax_priced(problem, colours, transports, relaxed)
    except Unsolved:
        return  # it was only for a better choice
    search = Search(problem, finer.expand([int(np.argmax(part)) for part in priced.parts]))
    if fit(search):
        best.offer(search.options)


def _round(
    problem: Problem, colours: Colours, relaxed: Relaxed, best: Incumbent, bound: float
) -> list[int]:
    """Offers the largest parts, and what descent makes of them; the options of the quotient."""
    options = [int(np.argmax(part)) for part in relaxed.parts]
    best.offer(colours.expand(options))
    if best.is_within(bound, EXACT):
        return options
    search = Search(colours.quotient, options)
    if fit(search):
        options = search.options
        best.offer(colours.expand(options))
    search = Search(problem, colours.expand(options))
    if fit(search):
        best.offer(search.options)
    return options


def _by_descent(problem: Problem, best: Incumbent) -> Solution:
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
    known = "at least" if least.gap <= EXACT else "in the best choice that was found"
    return PartitionError(
        f"{row.name or 'a moment'} cannot be kept within {row.limit:,.0f} bytes a rank: it takes "
        f"{held_of(row, least.options):,.0f} {known}; most of it hold {', '.join(names)}. "
        "Raise the limit or add ranks."
    )
