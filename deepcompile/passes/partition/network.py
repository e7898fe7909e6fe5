"""The moves of a tensor as few arcs: those that are no cheaper in two.

From any placement to any other there is a move, and most of them do on two axes what two others do
on one each. Where nothing is gained by a stop on the way, neither is anything lost when each longer
move is a path of shorter ones: the cheapest flow through the network costs the same (Ford and
Fulkerson 1962, decomposition into paths), with a fraction of the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .transport import Floats, Ints, Transport

EXACT = 1e-9
"""Seconds are told apart relative to this."""


@dataclass(frozen=True, eq=False)
class Network:
    """What may flow from sources to targets of a transport.

    Attributes:
        sources, targets: the nodes of the transport's sources and targets.
        nodes: how many there are.
        arcs: from which node to which.
        seconds: of each arc.
    """

    sources: Ints
    targets: Ints
    nodes: int
    arcs: tuple[Ints, Ints]
    seconds: Floats


def network_of(transport: Transport, *, apart: bool = False) -> Network | None:
    """The network of a transport; None where its moves make no metric.

    Args:
        transport: what it is of.
        apart: whether what arrives by other ways than arcs must not go on: then targets are nodes
            of their own.
    """
    places = np.union1d(transport.sources, transport.targets)
    real = places[places >= 0]
    table = transport.table[np.ix_(real, real)].copy()
    np.fill_diagonal(table, 0.0)
    found = _arcs(table)
    if found is None:
        return None
    count = len(real)
    sources = np.searchsorted(real, transport.sources)
    targets = np.searchsorted(real, transport.targets)
    some, others = found
    seconds = table[some, others]
    if len(places) > count:
        # Who does not take the tensor: free from everywhere.
        targets[transport.targets < 0] = count
        some = np.concatenate([some, sources])
        others = np.concatenate([others, np.full(len(sources), count)])
        seconds = np.concatenate([seconds, np.zeros(len(sources))])
    nodes = len(places)
    if apart:
        ends = nodes + np.arange(len(targets))
        some, others = np.concatenate([some, targets]), np.concatenate([others, ends])
        seconds = np.concatenate([seconds, np.zeros(len(targets))])
        nodes, targets = nodes + len(targets), ends
    return Network(sources, targets, nodes, (some, others), seconds)


def _arcs(table: Floats) -> tuple[Ints, Ints] | None:
    """Moves that are needed; None where two moves may be cheaper than the one that they make."""
    count = len(table)
    needed = np.isfinite(table) & ~np.eye(count, dtype=np.bool_)
    for stop in range(count):
        first, second = table[:, stop, None], table[None, stop, :]
        both = first + second
        if (both < table * (1.0 - EXACT) - 1e-30).any():
            return None
        # Both shorter: what is left out is always made of what is less.
        with np.errstate(invalid="ignore"):
            shorter = (first < table) & (second < table)
        needed &= ~((both <= table * (1.0 + EXACT)) & shorter)
    some, others = np.nonzero(needed)
    return some.astype(np.int64), others.astype(np.int64)
