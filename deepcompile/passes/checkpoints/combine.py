"""Which parts of a model take which choice, such that every moment of a step fits; with a bound.

Forward passes the layers in order and backward passes them in reverse, so while layer `k` is
worked on, in either direction, what layers before it saved is in memory, and what later layers
saved is not yet or not any more. What is feasible at a layer thus depends on earlier layers only
through the sum of what they saved; the exact optimum is a walk over pairs (sum, seconds) of which
none is worse than another in both. The bound is that of the linear relaxation (HiGHS in SciPy).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .unsolved import NO_SCIPY, Unsolved, failed

MOST_STATES = 4096
"""Pairs kept a layer; where there are more, the nearest sums share one, rounded up."""


@dataclass(frozen=True)
class Choice:
    """What one part of a model costs under one choice, in bytes and seconds.

    Attributes:
        saved: what it leaves in memory for backward.
        forward: the most that lives while it runs forward, less what earlier parts saved.
        backward: the same while its gradients are computed.
        seconds: what it takes longer than keeping everything.
        length: how many layers it covers.
    """

    saved: int
    forward: int
    backward: int
    seconds: float
    length: int = 1

    @property
    def peak(self) -> int:
        """The most that lives while it is worked on, less what earlier parts saved."""
        return max(self.forward, self.backward)


Layers = Sequence[Sequence[Choice]]
"""By the layer that it begins with: the choices for the part that begins there."""


@dataclass(frozen=True)
class Combination:
    """Parts that cover all layers, and which choice each takes.

    Attributes:
        chosen: of each part the layer it begins with, and the number of its choice there.
        seconds: all of them together.
        peak: bytes at the highest moment.
        bound: seconds that no combination undercuts at this budget; None where it was not asked
            for, or has no answer.
        no_bound: why it has none.
    """

    chosen: tuple[tuple[int, int], ...]
    seconds: float
    peak: int
    bound: float | None = None
    no_bound: str | None = None

    @property
    def gap(self) -> float | None:
        """How much longer it takes than the bound, as a part of it; None without one."""
        if self.bound is None:
            return None
        return (self.seconds - self.bound) / self.bound if self.bound > 0 else self.seconds


def peak_of(layers: Layers, chosen: Sequence[tuple[int, int]]) -> int:
    """Bytes at the highest moment of a step."""
    saved = highest = 0
    for start, number in chosen:
        highest = max(highest, saved + layers[start][number].peak)
        saved += layers[start][number].saved
    return highest


def smallest_peak(layers: Layers) -> tuple[int, int]:
    """The lowest budget that some combination fits, and the layer that pins it.

    By layer only the least sum of saved bytes matters: a combination that has saved less can do
    all that another can.
    """
    high = sum(max(c.saved for c in choices) for choices in layers)
    high += max((choice.peak for choices in layers for choice in choices), default=0)
    low = 0
    while low < high:
        middle = (low + high) // 2
        if _pinned(layers, middle) is None:
            high = middle
        else:
            low = middle + 1
    at = _pinned(layers, low - 1)
    return low, 0 if at is None else at


def _pinned(layers: Layers, budget: int) -> int | None:
    """The last layer that can be reached within the budget; None when all can be passed."""
    least: list[int | None] = [0] + [None] * len(layers)
    reached = 0
    for start, choices in enumerate(layers):
        saved = least[start]
        if saved is None:
            continue
        reached = start
        for choice in choices:
            end = start + choice.length
            if saved + choice.peak <= budget:
                total = saved + choice.saved
                known = least[end]
                least[end] = total if known is None else min(known, total)
    return reached if least[-1] is None else None


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _States:
    """What may have been chosen before a layer; each saves more than the one before, in less time.

    Attributes:
        saved, seconds: of all parts before the layer.
        origin: where each comes from, as one number: the layer where the last part begins, the
            state there, the choice.
    """

    saved: Ints
    seconds: Floats
    origin: Ints

    def after(self, choice: Choice, budget: int, origin: Callable[[Ints], Ints]) -> _States:
        """The states behind a part with this choice, for all in which it fits `budget` bytes."""
        fitting = int(np.searchsorted(self.saved, budget - choice.peak, side="right"))
        return _States(
            self.saved[:fitting] + choice.saved,
            self.seconds[:fitting] + choice.seconds,
            origin(np.arange(fitting)),
        )

    def only(self, where: npt.NDArray[np.bool_] | Ints) -> _States:
        """Some of the states."""
        return _States(self.saved[where], self.seconds[where], self.origin[where])


def combine(
    layers: Layers, budget: int, *, bound: bool = True, lean: bool = False
) -> Combination | None:
    """The quickest combination that fits `budget` bytes at every moment; None when none does.

    Args:
        layers: what can be chosen.
        budget: bytes at the highest moment.
        bound: whether to look for what no combination undercuts.
        lean: to take the one that leaves the fewest bytes for backward, the quickest of those.
    """
    shape = len(layers), MOST_STATES + 1, max(map(len, layers), default=0)
    made: list[list[_States]] = [[] for _ in range(len(layers) + 1)]
    made[0] = [_States(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64))]
    kept: list[_States] = []
    for start in range(len(layers) + 1):
        states = _undominated(made[start])
        kept.append(states)
        made[start] = []
        if start == len(layers):
            break
        for number, choice in enumerate(layers[start]):

            def origin(at: Ints, place: tuple[int, int] = (start, number)) -> Ints:
                return np.ravel_multi_index((place[0], at, place[1]), shape)

            made[start + choice.length].append(states.after(choice, budget, origin))
    if not kept[-1].saved.size:
        return None
    at = 0 if lean else len(kept[-1].saved) - 1  # the last is the quickest
    seconds = float(kept[-1].seconds[at])
    chosen: list[tuple[int, int]] = []
    end = len(layers)
    while end:
        end, at, number = map(int, np.unravel_index(kept[end].origin[at], shape))
        chosen.append((end, number))
    chosen.reverse()
    found = Combination(tuple(chosen), seconds, peak_of(layers, chosen))
    if not bound or lean:
        return found
    try:
        # The solver's last digits may be above.
        return replace(found, bound=min(relaxed(layers, budget), seconds))
    except Unsolved as error:
        return replace(found, no_bound=str(error))


def _undominated(made: Sequence[_States]) -> _States:
    """Of all states those that none undercuts in both; of equal ones that of least origin."""
    saved = np.concatenate([states.saved for states in made] or [np.zeros(0, np.int64)])
    if not saved.size:
        return _States(saved, np.zeros(0), saved)
    order = np.argsort(saved, kind="stable")  # quick on what consists of sorted runs
    saved = saved[order]
    seconds = np.concatenate([states.seconds for states in made])[order]
    origin = np.concatenate([states.origin for states in made])[order]
    firsts = np.flatnonzero(np.diff(saved, prepend=saved[0] - 1))
    quickest = np.minimum.reduceat(seconds, firsts)
    is_quickest = seconds == np.repeat(quickest, np.diff(firsts, append=saved.size))
    origin = np.minimum.reduceat(np.where(is_quickest, origin, np.iinfo(np.int64).max), firsts)
    states = _States(saved[firsts], quickest, origin)
    before = np.minimum.accumulate(quickest)[:-1]
    states = states.only(np.concatenate([[True], quickest[1:] < before]))
    if states.saved.size <= MOST_STATES:
        return states
    # Of those in one bucket of sums, the last, which is the quickest: no sum is taken for less.
    low, high = int(states.saved[0]), int(states.saved[-1])
    edges = low + (high - low) * np.arange(1, MOST_STATES + 1) // MOST_STATES
    ends = np.searchsorted(states.saved, edges, side="right") - 1
    return states.only(np.unique(np.append(ends, 0)))


def usable(layers: Layers, budget: int) -> list[tuple[int, Choice]]:
    """The choices that some combination within the budget has, with the layer each begins with."""
    endless = 1 << 62
    least = [0] + [endless] * len(layers)  # what is saved before a layer, at least
    for start, choices in enumerate(layers):
        for choice in choices:
            if least[start] + choice.peak <= budget:
                end = start + choice.length
                least[end] = min(least[end], least[start] + choice.saved)
    most = [-1] * len(layers) + [endless]  # what may be saved before it, such that the rest fits

    def room(start: int, choice: Choice) -> int:
        return min(budget - choice.peak, most[start + choice.length] - choice.saved)

    for start in reversed(range(len(layers))):
        most[start] = max((room(start, choice) for choice in layers[start]), default=-1)
    return [
        (start, choice)
        for start, choices in enumerate(layers)
        for choice in choices
        if least[start] <= room(start, choice)
    ]


def relaxed(layers: Layers, budget: int) -> float:
    """Seconds of the linear relaxation, where parts may mix choices, of those that fit at all.

    Each layer is covered once. While a layer is worked on, what parts that end before it saved is
    in memory, and the peak of the part that covers it. Those sums are variables of their own, each
    the one before and what ends there: else every part would be in the row of every later layer.

    Raises:
        Unsolved: without SciPy, or when the solver fails; also where nothing fits the budget.
    """
    try:
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix
    except ImportError:
        raise Unsolved(NO_SCIPY) from None
    parts = usable(layers, budget)
    if not layers:
        return 0.0
    if not parts:
        raise Unsolved("nothing fits")
    scale = float(max(budget, 1))
    costs = np.array([choice.seconds for _, choice in parts])
    unit = float(costs.max()) or 1.0
    width = len(parts) + len(layers)
    peaks: list[tuple[int, int, float]] = []
    equal: list[tuple[int, int, float]] = []
    for layer in range(len(layers)):
        before = len(parts) + layer  # the column of what parts that end before the layer saved
        peaks += (2 * layer, before, 1.0), (2 * layer + 1, before, 1.0)
        equal.append((len(layers) + layer, before, 1.0))
        if layer:
            equal.append((len(layers) + layer, before - 1, -1.0))
    for column, (start, choice) in enumerate(parts):
        end = start + choice.length
        for layer in range(start, end):
            equal.append((layer, column, 1.0))
            peaks.append((2 * layer, column, choice.forward / scale))
            peaks.append((2 * layer + 1, column, choice.backward / scale))
        if end < len(layers):
            equal.append((len(layers) + end, column, -choice.saved / scale))

    def matrix(found: list[tuple[int, int, float]]) -> csr_matrix:
        row, column, value = zip(*found, strict=True)
        return csr_matrix((value, (row, column)), shape=(2 * len(layers), width))

    result = linprog(
        np.concatenate([costs / unit, np.zeros(len(layers))]),
        A_ub=matrix(peaks),
        b_ub=np.full(2 * len(layers), budget / scale),
        A_eq=matrix(equal),
        b_eq=np.repeat([1.0, 0.0], len(layers)),
        bounds=[*[(0, 1)] * len(parts), *[(0, None)] * len(layers)],
        method="highs",
    )
    if result.status != 0:
        raise failed(result)
    return float(result.fun) * unit
