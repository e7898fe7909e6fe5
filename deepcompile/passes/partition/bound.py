"""Seconds that no choice undercuts, from prices, whoever made them up.

Let the user of a tensor pay `targets[q]` for taking it in placement `q`, and its maker the rest of
what the move costs it: for leaving it in `p`, the least over `q` of `shares[p, q] - targets[q]`.
Where the shares of all users that ask for a move are together no more than its seconds, no choice
costs less than what groups pay, and they pay no less than their cheapest options (Lagrangian
duality of the program in `program.py`; likewise a price for each byte of a memory row). So the
bound holds for the problem itself however its prices were found: for groups that one colour stood
for although they are not quite alike, and for a solver that stopped early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .colours import Colours
from .problem import Problem, Seconds
from .relaxation import Prices
from .transport import Floats, Ints, Transport, spaces_of


@dataclass(frozen=True, eq=False)
class Bound:
    """What prices say.

    Attributes:
        seconds: no choice costs less, up to rounding.
        more: by group and option, how much more than `seconds` all choices with the option cost at
            least; of groups together, at least the sum.
    """

    seconds: float
    more: Sequence[Floats]


def bound_of(
    problem: Problem, colours: Colours, transports: Sequence[Transport], prices: Prices
) -> Bound:
    """The bound of the problem itself.

    Args:
        problem: all of it.
        colours: of the problem.
        transports: of its classes of uses.
        prices: by class; each use pays an equal part of what those of its colour pay.
    """
    if not problem.costs:
        return Bound(0.0, [])
    sizes = np.array([len(costs) for costs in problem.costs], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    maker = np.array([value.maker for value in problem.values], np.int64)
    makers = np.array([maker[use.value] for use in problem.uses], np.int64)
    users = np.array([use.user for use in problem.uses], np.int64)
    order = np.argsort(colours.uses, kind="stable")
    ends = np.cumsum(np.bincount(colours.uses, minlength=len(transports)))
    shares = _fair(transports, prices.shares)
    pays = _Payments()
    for index, transport in enumerate(transports):
        members = order[ends[index - 1] if index else 0 : ends[index]]
        targets = prices.targets[index] / len(members)
        sources = (shares[index] / len(members) - targets).min(axis=1)
        pays.add(starts[makers[members]], sources[transport.source_of])
        pays.add(starts[users[members]], targets[transport.target_of])
    bound = 0.0
    for row, price in zip(problem.rows, np.maximum(prices.rows, 0.0), strict=True):
        bound -= float(price) * (row.limit - row.fixed)
        for group, held in row.bytes.items():
            pays.add(starts[group : group + 1], price * np.asarray(held, np.float64))
    every = np.concatenate(problem.costs) + pays.sums(int(starts[-1]))
    least = np.minimum.reduceat(every, starts[:-1])
    more = np.full(every.shape, np.inf)
    np.subtract(every, np.repeat(least, sizes), out=more, where=np.isfinite(every))
    return Bound(bound + float(least.sum()), np.split(more, starts[1:-1]))


class _Payments:
    """What options pay, as it is collected."""

    def __init__(self) -> None:
        self._where: list[Ints] = []
        self._what: list[Floats] = []

    def add(self, starts: Ints, what: Floats) -> None:
        """The same to all these groups; a group that comes twice pays twice."""
        self._where.append((starts[:, None] + np.arange(len(what))).ravel())
        self._what.append(np.tile(what, len(starts)))

    def sums(self, count: int) -> Floats:
        """By option."""
        if not self._where:
            return np.zeros(count)
        # `numpy.add.at` reads past values that it should broadcast (NumPy 2.4).
        sums: Floats = np.bincount(
            np.concatenate(self._where), np.concatenate(self._what), count
        ).astype(np.float64)
        return sums


def _fair(transports: Sequence[Transport], shares: Sequence[Seconds]) -> list[Seconds]:
    """Shares that sum to what each move costs, as near to the given ones as is simple."""
    made = [transport.seconds * transport.values for transport in transports]
    for space in spaces_of(transports).values():
        if len(space) < 2:
            continue
        # The last column is of users that do not take the tensor: their targets are -1.
        size = transports[space[0]].moves
        total, asked = np.zeros((size, size + 1)), np.zeros((size, size + 1))
        for index in space:
            cells = np.ix_(transports[index].sources, transports[index].targets)
            exists = np.isfinite(transports[index].seconds)
            total[cells] += np.where(exists, np.maximum(shares[index], 0.0), 0.0)
            asked[cells] += 1.0
        for index in space:
            transport = transports[index]
            exists = np.isfinite(transport.seconds)
            cells = np.ix_(transport.sources, transport.targets)
            whole = np.where(exists, transport.seconds, 0.0) * transport.values
            share = np.where(exists, np.maximum(shares[index], 0.0), 0.0)
            sums = total[cells]
            less = share * (whole / np.where(sums > 0, sums, 1.0))
            more = share + (whole - sums) / asked[cells]
            made[index] = np.where(exists, np.where(sums > whole, less, more), np.inf)
    return made
