"""Which parts of a model take which choice, such that every moment of a step fits; with a bound.

Forward passes the layers in order and backward passes them in reverse, so while layer `k` is
worked on, in either direction, what layers before it saved is in memory, and what later layers
saved is not yet or not any more. What is feasible at a layer thus depends on earlier layers only
through the sum of what they saved; the exact optimum is a walk over pairs (sum, seconds) of which
none is worse than another in both. The bound is that of the linear relaxation (HiGHS in SciPy).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

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


State = tuple[int, float, int, int, int]
"""Bytes saved, seconds, and where it comes from: the layer, the state there, the choice."""


def combine(layers: Layers, budget: int, *, bound: bool = True) -> Combination | None:
    """The quickest combination that fits `budget` bytes at every moment; None when none does."""
    made: list[list[State]] = [[] for _ in range(len(layers) + 1)]
    made[0] = [(0, 0.0, -1, -1, -1)]
    kept: list[list[State]] = []
    for start in range(len(layers) + 1):
        states = _undominated(sorted(made[start]))
        kept.append(states)
        if start == len(layers):
            break
        for at, (saved, seconds, *_) in enumerate(states):
            for number, choice in enumerate(layers[start]):
                if saved + choice.peak <= budget:
                    total = saved + choice.saved, seconds + choice.seconds
                    made[start + choice.length].append((*total, start, at, number))
    if not kept[-1]:
        return None
    state = min(kept[-1], key=lambda state: state[1])
    seconds = state[1]
    chosen: list[tuple[int, int]] = []
    while state[2] >= 0:
        chosen.append((state[2], state[4]))
        state = kept[state[2]][state[3]]
    chosen.reverse()
    found = Combination(tuple(chosen), seconds, peak_of(layers, chosen))
    if not bound:
        return found
    try:
        # The solver's last digits may be above.
        return replace(found, bound=min(relaxed(layers, budget), seconds))
    except Unsolved as error:
        return replace(found, no_bound=str(error))


def _undominated(made: list[State]) -> list[State]:
    kept: list[State] = []
    least = float("inf")
    for state in made:
        if state[1] < least:
            kept.append(state)
            least = state[1]
    if len(kept) <= MOST_STATES:
        return kept
    # Of those in one bucket of sums, the last, which is the quickest: no sum is taken for less.
    low, high = kept[0][0], kept[-1][0]
    sums = [state[0] for state in kept]
    edges = (low + (high - low) * (i + 1) // MOST_STATES for i in range(MOST_STATES))
    ends = {bisect.bisect_right(sums, edge) - 1 for edge in edges} | {0}
    return [kept[end] for end in sorted(ends)]


def relaxed(layers: Layers, budget: int) -> float:
    """Seconds of the linear relaxation, where parts may mix choices.

    Each layer is covered once. While a layer is worked on, what parts that end before it saved is
    in memory, and the peak of the part that covers it.

    Raises:
        Unsolved: without SciPy, or when the solver fails; also where nothing fits the budget.
    """
    try:
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix
    except ImportError:
        raise Unsolved(NO_SCIPY) from None
    parts = [(start, choice) for start, choices in enumerate(layers) for choice in choices]
    if not parts:
        return 0.0
    scale = float(max(budget, 1))
    costs = np.array([choice.seconds for _, choice in parts])
    unit = float(costs.max()) or 1.0
    entries: list[tuple[int, int, float]] = []
    covers: list[tuple[int, int, float]] = []
    for column, (start, choice) in enumerate(parts):
        for layer in range(start, start + choice.length):
            covers.append((layer, column, 1.0))
            entries.append((2 * layer, column, choice.forward / scale))
            entries.append((2 * layer + 1, column, choice.backward / scale))
        for layer in range(start + choice.length, len(layers)):
            entries.append((2 * layer, column, choice.saved / scale))
            entries.append((2 * layer + 1, column, choice.saved / scale))

    def matrix(found: list[tuple[int, int, float]], rows: int) -> csr_matrix:
        row, column, value = zip(*found, strict=True)
        return csr_matrix((value, (row, column)), shape=(rows, len(parts)))

    result = linprog(
        costs / unit,
        A_ub=matrix(entries, 2 * len(layers)),
        b_ub=np.full(2 * len(layers), budget / scale),
        A_eq=matrix(covers, len(layers)),
        b_eq=np.ones(len(layers)),
        bounds=(0, 1),
        method="highs",
    )
    if result.status != 0:
        raise failed(result)
    return float(result.fun) * unit
