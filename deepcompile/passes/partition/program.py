"""The linear program of a problem, as sparse matrices.

A variable in [0, 1] for each option of each group. For each use the transports: how much of the
tensor goes from which source to which target; they sum to what the maker leaves and to what the
user takes, and are whole where the options are. Where several users ask for one move, a variable
of its own is at least each of their transports, and it alone costs: this is what makes a gather
that three projections share cost one gather. Where only one asks, a network does in place of all
pairs (`network.py`). (Alpa's program, Zheng et al. 2022, with transports
by placement in place of pairs of options, and moves shared.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoints.unsolved import NO_SCIPY, Unsolved
from .colours import Colours
from .network import network_of
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
        pairs: by transport, (its indices of sources, of targets) of its columns; None where they
            are those of a network or none.
        starts: where each transport's columns begin.
        targets: by transport, the rows of `equal` that balance its targets; None if it has none.
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
    pairs: Sequence[tuple[Ints, Ints] | None]
    starts: Ints
    targets: Sequence[Ints | None]
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
    alone = {space[0] for space in spaces_of(transports).values() if len(space) == 1}
    pairs: list[tuple[Ints, Ints] | None] = []
    targets: list[Ints | None] = []
    starts = [int(options[-1])]
    top = len(sizes)
    for index, transport in enumerate(transports):
        if transport.is_free:
            costs.append(np.zeros(0))
            pairs.append(None)
            targets.append(None)
            starts.append(starts[-1])
            continue
        network = network_of(transport) if index in alone else None
        if network is not None:
            sources, ends, arcs = top + network.sources, top + network.targets, network.arcs
            own = starts[-1] + np.arange(len(arcs[0]))
            equal.add(top + arcs[0], own, -1.0)
            equal.add(top + arcs[1], own, 1.0)
            sign = 1.0
            top += network.nodes
            costs.append(network.seconds * transport.values)
            pairs.append(None)
        else:
            some, others = np.nonzero(np.isfinite(transport.seconds))
            own = starts[-1] + np.arange(len(some))
            sources = top + np.arange(len(transport.sources))
            top += len(transport.sources)
            ends = top + np.arange(len(transport.targets))
            top += len(transport.targets)
            equal.add(sources[some], own, 1.0)
            equal.add(ends[others], own, 1.0)
            sign = -1.0
            costs.append(transport.seconds[some, others] * transport.values)
            pairs.append((some.astype(np.int64), others.astype(np.int64)))
        targets.append(ends)
        starts.append(starts[-1] + len(own))
        for at, colour, part in (
            (sources[transport.source_of], transport.makers, sign),
            (ends[transport.target_of], transport.users, -1.0),
        ):
            for group, count in zip(*colour, strict=True):
                column = options[group] + np.arange(len(at))
                equal.add(at, column, part * count / transport.uses)
    shared, some_costs = _share(transports, pairs, np.array(starts), costs, below)
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
        equal.matrix(top, width),
        np.concatenate([np.ones(len(sizes)), np.zeros(top - len(sizes))]),
        below.matrix(len(shared) + len(scales), width),
        np.concatenate([np.zeros(len(shared)), limits]),
        options,
        pairs,
        np.array(starts),
        targets,
        shared,
        np.array(scales),
    )


def _share(
    transports: Sequence[Transport],
    pairs: Sequence[tuple[Ints, Ints] | None],
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
            pair = pairs[index]
            if pair is None:
                continue
            sources, targets = pair
            own = costs[1 + index]
            paid = np.flatnonzero(own > 0)
            transport = transports[index]
            codes.append(transport.sources[sources[paid]] * size + transport.targets[targets[paid]])
            columns.append(starts[index] + paid)
            seconds.append(own[paid])
        if not codes:
            continue
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
