"""The linear program of a problem, as sparse matrices.

A variable in [0, 1] for each option of each group. For each use the transports: how much of the
tensor goes from which source to which target; they sum to what the maker leaves and to what the
user takes, and are whole where the options are. Where several users ask for one move, a variable
of its own is at least each of their transports, and it alone costs: this is what makes a gather
that three projections share cost one gather. (Alpa's program, Zheng et al. 2022, with transports
by placement in place of pairs of options, and moves shared.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoints.unsolved import NO_SCIPY, Unsolved
from .colours import Colours
from .problem import Problem
from .transport import Floats, Ints, Transport, spaces_of


@dataclass(frozen=True, eq=False)
class Program:
    """Columns: options by group, transports by use, shared moves.

    Attributes:
        costs: by column, in units.
        unit: seconds.
        equal: sparse; by row, what must equal `right`.
        right: ones for groups, then zeros for transports.
        below: sparse; by row, what must not exceed `limits`.
        limits: zeros for shared moves, ones for memory rows.
        options: where each group's columns begin; the last where the transports' begin.
        pairs: by transport, (its indices of sources, of targets) of its columns.
        starts: where each transport's columns begin.
        balance: where each transport's rows of `equal` begin.
        shared: by row of shared moves, the transport's column.
        scales: by memory row, bytes of its limit.
    """

    costs: Floats
    unit: float
    equal: Any
    right: Floats
    below: Any
    limits: Floats
    options: Ints
    pairs: Sequence[tuple[Ints, Ints]]
    starts: Ints
    balance: Ints
    shared: Ints
    scales: Floats


class _Triplets:
    """A sparse matrix as it grows."""

    def __init__(self) -> None:
        self.row: list[Ints] = []
        self.column: list[Ints] = []
        self.value: list[Floats] = []

    def add(self, row: Ints, column: Ints, value: float | Floats) -> None:
        self.row.append(row)
        self.column.append(column)
        self.value.append(np.broadcast_to(np.asarray(value, np.float64), row.shape))

    def matrix(self, height: int, width: int) -> Any:
        from scipy.sparse import csr_matrix

        if not self.row:
            return csr_matrix((height, width))
        row, column = np.concatenate(self.row), np.concatenate(self.column)
        return csr_matrix((np.concatenate(self.value), (row, column)), shape=(height, width))


def program_of(problem: Problem, colours: Colours, transports: Sequence[Transport]) -> Program:
    """The linear program, by sums over colours of groups and over classes of uses.

    Args:
        problem: all of it.
        colours: of the problem.
        transports: of its classes of uses.

    Raises:
        Unsolved: without SciPy.
    """
    try:
        import scipy.sparse  # noqa: F401
    except ImportError:
        raise Unsolved(NO_SCIPY) from None
    whole = colours.quotient
    sizes = np.array([len(costs) for costs in whole.costs], np.int64)
    options = np.concatenate([[0], np.cumsum(sizes)])
    costs = [np.concatenate([np.zeros(0), *whole.costs])]
    equal, below = _Triplets(), _Triplets()
    groups = np.repeat(np.arange(len(sizes)), sizes)
    equal.add(groups, np.arange(options[-1]), 1.0)
    pairs = [_pairs(transport) for transport in transports]
    lengths = np.array([len(some) for some, _ in pairs], np.int64)
    starts = options[-1] + np.concatenate([[0], np.cumsum(lengths)])
    heights = [0 if _is_free(t) else len(t.sources) + len(t.targets) for t in transports]
    balance = len(sizes) + np.concatenate([[0], np.cumsum(heights)])
    for index, transport in enumerate(transports):
        if _is_free(transport):
            costs.append(np.zeros(0))
            continue
        at = int(balance[index])
        half = at + len(transport.sources)
        own = np.arange(starts[index], starts[index + 1])
        some, others = pairs[index]
        equal.add(at + some, own, 1.0)
        equal.add(half + others, own, 1.0)
        for ends, colour, top in (
            (transport.source_of, transport.makers, at),
            (transport.target_of, transport.users, half),
        ):
            for group, count in zip(*colour, strict=True):
                part = -count / transport.uses
                equal.add(top + ends, options[group] + np.arange(len(ends)), part)
        costs.append(transport.seconds[some, others] * transport.values)
    shared, some_costs = _share(transports, pairs, starts, costs, below)
    width = int(starts[-1]) + len(some_costs)
    every = np.concatenate([*costs, some_costs])
    scales = []
    for number, row in enumerate(whole.rows):
        scale = max(row.limit - row.fixed, 1.0)
        scales.append(scale)
        for group, held in row.bytes.items():
            own = options[group] + np.arange(len(held))
            below.add(np.full(len(held), len(shared) + number), own, held / scale)
    limits = [(row.limit - row.fixed) / s for row, s in zip(whole.rows, scales, strict=True)]
    positive = every[every > 0]
    unit = float(np.median(positive)) if positive.size else 1.0
    return Program(
        every / unit,
        unit,
        equal.matrix(int(balance[-1]), width),
        np.concatenate([np.ones(len(sizes)), np.zeros(int(balance[-1]) - len(sizes))]),
        below.matrix(len(shared) + len(scales), width),
        np.concatenate([np.zeros(len(shared)), limits]),
        options,
        pairs,
        starts,
        balance,
        shared,
        np.array(scales),
    )


def _is_free(transport: Transport) -> bool:
    """Whether it costs nothing whatever is chosen, so that the program can do without it."""
    return not transport.seconds.any()


def _pairs(transport: Transport) -> tuple[Ints, Ints]:
    if _is_free(transport):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    sources, targets = np.nonzero(np.isfinite(transport.seconds))
    return sources.astype(np.int64), targets.astype(np.int64)


def _share(
    transports: Sequence[Transport],
    pairs: Sequence[tuple[Ints, Ints]],
    starts: Ints,
    costs: list[Floats],
    below: _Triplets,
) -> tuple[Ints, Floats]:
    """Columns for moves that several transports may ask for, and their rows.

    A move that only one transport can ask for costs on its own column.

    Returns:
        By new row the transport's column in it, and by new column what it costs.
    """
    shared: list[Ints] = []
    made: list[Floats] = []
    width, height = int(starts[-1]), 0
    for space in spaces_of(transports).values():
        if len(space) < 2:
            continue
        size = transports[space[0]].moves
        codes, columns, seconds = [], [], []
        for index in space:
            sources, targets = pairs[index]
            own = costs[1 + index]
            paid = np.flatnonzero(own > 0)
            transport = transports[index]
            codes.append(transport.sources[sources[paid]] * size + transport.targets[targets[paid]])
            columns.append(starts[index] + paid)
            seconds.append(own[paid])
        _, first, at, count = np.unique(
            np.concatenate(codes), return_index=True, return_inverse=True, return_counts=True
        )
        several = count > 1
        new = np.cumsum(several) - 1
        chosen = several[at]
        column = np.concatenate(columns)[chosen]
        rows = height + np.arange(len(column))
        below.add(rows, column, 1.0)
        below.add(rows, width + new[at[chosen]], -1.0)
        made.append(np.concatenate(seconds)[first[several]])
        shared.append(column)
        height += len(column)
        width += int(several.sum())
        for index in space:
            inside = column[(column >= starts[index]) & (column < starts[index + 1])]
            costs[1 + index][inside - starts[index]] = 0.0
    if not made:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(shared), np.concatenate(made)
