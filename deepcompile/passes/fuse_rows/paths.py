"""Paths between units of a graph that becomes smaller as units merge.

All units have a rank, and edges lead to higher ranks, so that a path from one unit to another is
looked for among the ranks in between only. When two units merge, the ranks in between are dealt
out anew (Pearce and Kelly, A Dynamic Topological Sort Algorithm for Directed Acyclic Graphs, 2006).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch.fx import Node


@dataclass(eq=False)
class _Unit:
    nodes: list[Node]
    rank: int


_Side = Literal["before", "after"]


class Paths:
    """Units of nodes, at first of one each.

    Args:
        before: for each node, in an order that edges follow, the nodes that it comes after.
    """

    def __init__(self, before: Mapping[Node, Iterable[Node]]) -> None:
        self._unit = {node: _Unit([node], rank) for rank, node in enumerate(before)}
        self._edges: dict[_Side, dict[Node, list[Node]]] = {
            "before": {node: list(sources) for node, sources in before.items()},
            "after": {node: [] for node in before},
        }
        for node, sources in self._edges["before"].items():
            for source in sources:
                self._edges["after"][source].append(node)

    def comes_after(self, left: Node, right: Node) -> bool:
        """Whether an edge leads from the unit of `right` to that of `left`."""
        return self._unit[left] in self._next(self._unit[right], "after")

    def leave(self, left: Node, right: Node) -> bool:
        """Whether a path from the unit of one node to that of the other passes through a third."""
        low, high = self._by_rank(left, right)
        # From both ends at once: often one of them leads nowhere, and the other far.
        ends: tuple[tuple[_Side, _Unit], ...] = (("after", low), ("before", high))
        seen: list[set[_Unit]] = []
        for side, unit in ends:
            seen.append(set(self._between(unit, side, low, high)))
        if not seen[0].isdisjoint(seen[1]):
            return True
        waiting = [list(seen[0]), list(seen[1])]
        while waiting[0] and waiting[1]:
            for at, (side, _) in enumerate(ends):
                for unit in self._between(waiting[at].pop(), side, low, high):
                    if unit in seen[1 - at]:
                        return True
                    if unit not in seen[at]:
                        seen[at].add(unit)
                        waiting[at].append(unit)
        return False

    def merge(self, left: Node, right: Node) -> None:
        """Make one unit of those of two nodes, between which no path passes through a third."""
        low, high = self._by_rank(left, right)
        below = self._reached(high, "before", low, high)
        above = self._reached(low, "after", low, high)
        ranks = sorted(unit.rank for unit in (low, high, *below, *above))
        merged, other = (low, high) if len(low.nodes) > len(high.nodes) else (high, low)
        merged.nodes += other.nodes
        for node in other.nodes:
            self._unit[node] = merged
        for unit, rank in zip([*below, merged], ranks, strict=False):
            unit.rank = rank
        for unit, rank in zip(reversed(above), reversed(ranks), strict=False):
            unit.rank = rank

    def _by_rank(self, left: Node, right: Node) -> tuple[_Unit, _Unit]:
        one, other = self._unit[left], self._unit[right]
        return (one, other) if one.rank < other.rank else (other, one)

    def _next(self, unit: _Unit, side: _Side) -> Iterator[_Unit]:
        edges = self._edges[side]
        for node in unit.nodes:
            for other in edges[node]:
                yield self._unit[other]

    def _between(self, unit: _Unit, side: _Side, low: _Unit, high: _Unit) -> Iterator[_Unit]:
        """The next units whose rank is between those of two others."""
        for other in self._next(unit, side):
            if low.rank < other.rank < high.rank and other is not unit:
                yield other

    def _reached(self, unit: _Unit, side: _Side, low: _Unit, high: _Unit) -> list[_Unit]:
        """All units on paths from one, with a rank between those of two others, by rank."""
        waiting, seen = [unit], {unit}
        while waiting:
            for other in self._between(waiting.pop(), side, low, high):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return sorted(seen - {unit}, key=lambda other: other.rank)
