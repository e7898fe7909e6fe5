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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
        pairs: by transport, (its indices of sources, of targets) of its columns beside those of a
            network.
        starts: where each transport's columns of pairs begin.
        ends: by transport, the rows of `equal` that balance its sources and its targets; None if it
            is free.
        nets: by transport, whether it has a network.
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
    ends: Sequence[tuple[Ints, Ints] | None]
    nets: Sequence[bool]
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


Sharing = Mapping[tuple[int, bool], Ints]
"""By space, moves that its transports may share: `source * placements + target`, sorted."""


def program_of(
    problem: Problem,
    colours: Colours,
    transports: Sequence[Transport],
    sharing: Sharing | None = None,
    *,
    split: bool = False,
) -> Program:
    """The linear program, by sums over colours of groups and over classes of uses.

    Args:
        problem: all of it.
        colours: of the problem.
        transports: of its classes of uses.
        sharing: which moves are shared; None for all. With fewer the program is smaller, and its
            optimum may be greater.
        split: let each of the users that might share a move pay an equal part of it, whether the
            others ask for it or not: then the optimum may be less.

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
    spaces = spaces_of(transports)
    pairs: list[tuple[Ints, Ints]] = []
    ends: list[tuple[Ints, Ints] | None] = []
    nets: list[bool] = []
    starts: list[int] = []
    width, top = int(options[-1]), len(sizes)
    for transport in transports:
        some = _shared_pairs(transport, spaces, sharing)
        network = None if some is None else network_of(transport, apart=len(some[0]) > 0)
        if some is None or network is None:
            exists = np.isfinite(transport.seconds) & (not transport.is_free)
            some = _pairs(exists)
        nets.append(network is not None)
        pairs.append(some)
        own = transport.seconds[some] * transport.values
        if transport.is_free:
            costs.append(own)
            ends.append(None)
            starts.append(width)
            continue
        if network is not None:
            sources, targets, sign = top + network.sources, top + network.targets, 1.0
            payers = len(spaces[transport.space]) if split else 1
            own = np.concatenate([network.seconds * transport.values / payers, own])
            arcs = width + np.arange(len(network.seconds))
            equal.add(top + network.arcs[0], arcs, -1.0)
            equal.add(top + network.arcs[1], arcs, 1.0)
            width += len(arcs)
            top += network.nodes
        else:
            sources, sign = top + np.arange(len(transport.sources)), -1.0
            top += len(sources)
            targets = top + np.arange(len(transport.targets))
            top += len(targets)
        starts.append(width)
        columns = width + np.arange(len(some[0]))
        width += len(columns)
        equal.add(sources[some[0]], columns, -sign)
        equal.add(targets[some[1]], columns, 1.0)
        costs.append(own)
        ends.append((sources, targets))
        for at, colour, part in (
            (sources[transport.source_of], transport.makers, sign),
            (targets[transport.target_of], transport.users, -1.0),
        ):
            for group, count in zip(*colour, strict=True):
                column = options[group] + np.arange(len(at))
                equal.add(at, column, part * count / transport.uses)
    shared, some_costs = _share(transports, pairs, np.array(starts), width, costs, below)
    width += len(some_costs)
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
        ends,
        nets,
        shared,
        np.array(scales),
    )


def _pairs(exists: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    some, others = np.nonzero(exists)
    return some.astype(np.int64), others.astype(np.int64)


def _shared_pairs(
    transport: Transport, spaces: Mapping[tuple[int, bool], list[int]], sharing: Sharing | None
) -> tuple[Ints, Ints] | None:
    """Of a transport the pairs that it may share; None where that is any that there is."""
    nothing = np.zeros(0, np.int64)
    if len(spaces[transport.space]) == 1:
        return nothing, nothing
    if sharing is None:
        return None
    codes = sharing.get(transport.space, nothing)
    paid = np.isfinite(transport.seconds) & (transport.seconds > 0)
    return _pairs(paid & np.isin(transport.codes, codes))


def _share(
    transports: Sequence[Transport],
    pairs: Sequence[tuple[Ints, Ints]],
    starts: Ints,
    width: int,
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
    height = 0
    for space in spaces_of(transports).values():
        if len(space) < 2:
            continue
        codes, columns, seconds = [], [], []
        for index in space:
            own = costs[1 + index][len(costs[1 + index]) - len(pairs[index][0]) :]
            paid = np.flatnonzero(own > 0)
            codes.append(transports[index].codes[pairs[index]][paid])
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
            every, many = costs[1 + index], len(pairs[index][0])
            inside = column[(column >= starts[index]) & (column < starts[index] + many)]
            every[len(every) - many + inside - starts[index]] = 0.0
    if not made:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(shared), np.concatenate(made)
