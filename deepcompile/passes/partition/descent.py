"""Better choices one group at a time, with the exact cost of each change.

Coordinate descent (iterated conditional modes, Besag 1986): the group at hand takes the option that
is cheapest as long as all others stay, until none wants another. Where a memory row is exceeded,
its bytes get a price that rises until the row fits; then they are cheapened again within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from .problem import Problem
from .transport import Floats

UNDECIDED = -1
"""In place of an option: the group neither makes nor takes anything yet."""

PRICES = 60
"""How often the price of a byte is doubled at most."""


class Search:
    """A choice that changes, and for any group what each of its options would cost.

    Attributes:
        options: by group, an option or `UNDECIDED`.
    """

    def __init__(self, problem: Problem, options: Sequence[int]) -> None:
        self.problem = problem
        self.options = list(options)
        self._impossible = _more_than_all(problem)
        known: dict[int, Floats] = {}
        self._moves = [self._possible(value.moves, known) for value in problem.values]
        self._costs = [
            np.where(np.isfinite(costs), costs, self._impossible) for costs in problem.costs
        ]
        self._made = [np.array(value.made, np.int64) for value in problem.values]
        self._taken = [np.array(use.taken, np.int64) for use in problem.uses]
        self._uses: list[dict[int, list[int]]] = [{} for _ in problem.costs]
        self._users: list[list[int]] = [[] for _ in problem.values]
        for index, value in enumerate(problem.values):
            self._uses[value.maker][index] = []
        for index, use in enumerate(problem.uses):
            self._uses[use.user].setdefault(use.value, []).append(index)
            self._users[use.value].append(use.user)
        # How many forward and backward uses ask for each placement.
        self._asked = [np.zeros((2, len(value.moves)), np.int64) for value in problem.values]
        for group in range(len(self.options)):
            self._ask(group, 1)
        self._held = [
            {group: np.asarray(held, np.float64) for group, held in row.bytes.items()}
            for row in problem.rows
        ]
        self.held = [self._holds(row) for row in range(len(problem.rows))]

    def _possible(self, moves: Floats, known: dict[int, Floats]) -> Floats:
        key = id(moves)
        if key not in known:
            made = np.where(np.isfinite(moves), moves, self._impossible)
            np.fill_diagonal(made, 0.0)
            known[key] = made
        return known[key]

    def _holds(self, row: int) -> float:
        chosen = ((held, self.options[group]) for group, held in self._held[row].items())
        fixed = self.problem.rows[row].fixed
        return fixed + sum(float(held[option]) for held, option in chosen if option >= 0)

    def _ask(self, group: int, sign: int) -> None:
        option = self.options[group]
        if option == UNDECIDED:
            return
        for value, uses in self._uses[group].items():
            for use in uses:
                target = self._taken[use][option]
                if target >= 0:
                    self._asked[value][int(self.problem.uses[use].backward), target] += sign

    @property
    def fits(self) -> bool:
        """Whether no memory row is exceeded."""
        return all(
            held <= row.limit for held, row in zip(self.held, self.problem.rows, strict=True)
        )

    def set(self, group: int, option: int) -> None:
        """Lets a group take another option."""
        self._ask(group, -1)
        before, self.options[group] = self.options[group], option
        self._ask(group, 1)
        for row, by_group in enumerate(self._held):
            if group in by_group:
                less = float(by_group[group][before]) if before >= 0 else 0.0
                self.held[row] += float(by_group[group][option]) - less

    def neighbours(self, group: int) -> Iterable[int]:
        """Groups whose options cost something else when this one changes."""
        for value in self._uses[group]:
            yield self.problem.values[value].maker
            yield from self._users[value]

    def pays(self, group: int) -> Floats:
        """By option of a group, what it costs, and every move of the tensors that it touches."""
        total = self._costs[group].copy()
        self._ask(group, -1)
        for value, uses in self._uses[group].items():
            total += self._moved(group, value, uses)
        self._ask(group, 1)
        return total

    def _moved(self, group: int, value: int, uses: list[int]) -> Floats | float:
        """The moves of one tensor, where others ask for what they do."""
        table, asked = self._moves[value], self._asked[value] > 0
        maker = self.problem.values[value].maker
        is_maker = maker == group
        if not is_maker and self.options[maker] == UNDECIDED:
            return 0.0
        keeps = self.problem.values[value].keeps_moved
        if is_maker and not uses:
            demand = asked.any(axis=0) if keeps else asked.sum(axis=0)
            return (table @ demand)[self._made[value]]
        count = len(self._costs[group])
        every = np.arange(count)
        here = self._made[value] if is_maker else self._made[value][[self.options[maker]] * count]
        demands = np.repeat(asked[None], count, axis=0)
        for use in uses:
            taken = self._taken[use]
            takes = taken >= 0
            demands[every[takes], int(self.problem.uses[use].backward), taken[takes]] = True
        wanted = demands.any(axis=1) if keeps else demands.sum(axis=1)
        return (table[here] * wanted).sum(axis=1)

    def holds(self, group: int) -> list[tuple[int, Floats]]:
        """The memory rows that a group is in, and by option the bytes of it there."""
        return [(row, held[group]) for row, held in enumerate(self._held) if group in held]


def _more_than_all(problem: Problem) -> float:
    """Seconds above those of any possible choice; adding some of them stays exact enough."""
    total = 1e-9
    for costs in problem.costs:
        total += float(costs[np.isfinite(costs)].max(initial=0.0))
    known: dict[int, float] = {}
    for use in problem.uses:
        moves = problem.values[use.value].moves
        if id(moves) not in known:
            known[id(moves)] = float(moves[np.isfinite(moves)].max(initial=0.0))
        total += known[id(moves)]
    return 4.0 * total


def descend(
    search: Search, prices: npt.NDArray[np.float64] | None = None, *, within: bool = True
) -> None:
    """Changes options one by one until no single change is cheaper.

    Args:
        search: what is changed.
        prices: by memory row, seconds a byte on top of what options cost.
        within: no change exceeds a memory row.
    """
    count = len(search.options)
    waiting = list(range(count))
    while waiting:
        changed: set[int] = set()
        for group in waiting:
            if len(search.problem.costs[group]) == 1 and search.options[group] == 0:
                continue
            pays = search.pays(group)
            now = search.options[group]
            for row, held in search.holds(group):
                if prices is not None:
                    pays += prices[row] * held
                if within:
                    room = search.problem.rows[row].limit - search.held[row]
                    own = float(held[now]) if now >= 0 else 0.0
                    pays[held - own > max(room, 0.0)] = np.inf
            best = int(np.argmin(pays))
            if now < 0 or pays[best] < pays[now] - 1e-12 * (1e-6 + abs(float(pays[now]))):
                search.set(group, best)
                changed.update(search.neighbours(group))
        waiting = sorted(changed)


def fit(search: Search) -> bool:
    """Descends to a choice that no memory row is exceeded by; whether there it is."""
    if not search.fits:
        prices = np.zeros(len(search.problem.rows))
        for _ in range(PRICES):
            for row, limits in enumerate(search.problem.rows):
                if search.held[row] > limits.limit:
                    first = _seconds_a_byte(search, row)
                    prices[row] = max(2.0 * prices[row], first)
            descend(search, prices, within=False)
            if search.fits:
                break
        else:
            return False
    descend(search)
    return search.fits


def _seconds_a_byte(search: Search, row: int) -> float:
    """A price that is too low to change much: a thousandth of a typical option's seconds."""
    sizes = [float(held.max()) for held in (h for _, h in _rows_of(search, row)) if held.size]
    seconds = [float(costs[np.isfinite(costs)].mean()) for costs in search.problem.costs]
    return 1e-3 * max(sum(seconds), 1e-9) / max(sum(sizes), 1.0)


def _rows_of(search: Search, row: int) -> Iterable[tuple[int, Floats]]:
    return search.problem.rows[row].bytes.items()


def greedy(problem: Problem, order: Iterable[int]) -> Search:
    """One group after the other takes what is cheapest with those that were there before."""
    search = Search(problem, [UNDECIDED] * len(problem.costs))
    for group in order:
        search.set(group, int(np.argmin(search.pays(group))))
    return search


def cheapest(problem: Problem) -> list[int]:
    """By group the option that costs least by itself."""
    return [int(np.argmin(costs)) for costs in problem.costs]
