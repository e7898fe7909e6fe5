"""Which ways to share work lead anywhere, by what the operations at both ends of views can do.

A shard in pieces of a matrix product's result may be an ordinary one of the heads that a view makes
of it, which attention can use; or one inside the heads, which it cannot. So what views, pointwise
operations and the like only pass on is one *path*, and a path with pieces is of use if an operation
that does more makes it, and another one takes it. Likewise partial maxima are of use only behind
what makes them: nothing moves into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from deepcompile.ir.placements import Partial, PartialKind, Placement, Shard
from deepcompile.passes.partition.sites import Sites, TensorId
from deepcompile.passes.partition.strategy import Strategy, outputs_of

aten = torch.ops.aten

Placed = tuple[TensorId, Placement]
Sharded = tuple[TensorId, Shard]

#: Operations that pass a shard on, beside pointwise ones.
PASSES_ON = frozenset(
    overload
    for packet in (
        *(aten.view, aten.reshape, aten._unsafe_view, aten.permute, aten.transpose, aten.t),
        *(aten.expand, aten.alias, aten.detach, aten.clone, aten.squeeze, aten.unsqueeze),
        *(aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind, aten.chunk),
        *(aten.cat, aten.stack, aten.slice_scatter, aten.select_scatter, aten.constant_pad_nd),
        *(aten._to_copy, aten.sum, aten.mean, aten.amax, aten.amin),
        *(aten.full, aten.zeros, aten.ones, aten.arange, aten.full_like, aten.zeros_like),
    )
    for overload in (getattr(packet, name) for name in packet.overloads())
)


@dataclass(frozen=True)
class _Way:
    """A strategy of an operation that does more than pass on: the paths that it connects."""

    taken: tuple[int, ...]
    made: tuple[int, ...]


class Uses:
    """What of the strategies of a graph's nodes is of use.

    Args:
        sites: the graph.
        inputs: the tensors that each node takes.
        strategies: of each node, in the order of the graph.
    """

    def __init__(
        self,
        sites: Sites,
        inputs: Mapping[Node, Sequence[TensorId]],
        strategies: Mapping[Node, Sequence[Strategy]],
    ) -> None:
        self._sites, self._inputs = sites, inputs
        self._numbers: dict[Sharded, int] = {}
        self._above: list[int] = []
        self._ways: list[_Way] = []
        self._beside: list[tuple[int, int]] = []
        self._reduced: set[tuple[TensorId, PartialKind]] = set()
        for node, own in strategies.items():
            self._visit(node, own)
        dead = self._useless()
        self._dead = {item for item, at in self._numbers.items() if dead and self._find(at) in dead}

    def has(self, node: Node, strategy: Strategy) -> bool:
        """Whether a strategy of a node is of use."""
        made, taken = self._tensors(node, strategy)
        return all(
            (tensor, placement) not in self._dead
            and (
                not isinstance(placement, Partial)
                or placement.kind == "sum"
                or (tensor, placement.kind) in self._reduced
            )
            for tensor, placement in (*made, *taken)
        )

    def serves(self, tensor: TensorId, shard: Shard) -> bool:
        """Whether a shard of a tensor is of use."""
        return (tensor, shard) not in self._dead

    def _tensors(self, node: Node, strategy: Strategy) -> tuple[list[Placed], list[Placed]]:
        made: list[Placed] = [
            ((node, index), place) for index, place in enumerate(strategy.outputs)
        ]
        return made, list(zip(self._inputs[node], strategy.inputs, strict=True))

    def _numbered(self, placed: Iterable[Placed]) -> dict[int, TensorId]:
        """The shards among placements, by number."""
        found = {}
        for tensor, place in placed:
            if isinstance(place, Shard):
                number = self._numbers.setdefault((tensor, place), len(self._above))
                if number == len(self._above):
                    self._above.append(number)
                found[number] = tensor
        return found

    def _find(self, number: int) -> int:
        """What stands for the path that a shard is on."""
        above = self._above
        while above[number] != number:
            above[number] = number = above[above[number]]
        return number

    def _visit(self, node: Node, strategies: Iterable[Strategy]) -> None:
        passes = node.target in PASSES_ON or _is_pointwise(node)
        for strategy in strategies:
            made, taken = self._tensors(node, strategy)
            self._reach(made, taken)
            some, others = self._numbered(made), self._numbered(taken)
            if not passes or (others and not some):
                self._ways.append(_Way(tuple(others), tuple(some)))
                continue
            # What is broadcast beside another operand leads from one path to another.
            less = [item for item, tensor in others.items() if self._is_less(node, tensor)]
            beside = less if len(less) < len(others) else []
            for result in some:
                self._beside += [(item, result) for item in beside]
                for item in others:
                    if item not in beside:
                        self._above[self._find(result)] = self._find(item)

    def _is_less(self, node: Node, tensor: TensorId) -> bool:
        """Whether an operand of a pointwise operation is broadcast."""
        value, result = outputs_of(tensor[0])[tensor[1]], outputs_of(node)[0]
        if not _is_pointwise(node) or value is None or result is None:
            return False
        long = sum(extent != 1 for extent in value.shape)
        return long < sum(extent != 1 for extent in result.shape)

    def _reach(self, made: list[Placed], taken: list[Placed]) -> None:
        """Which results may be partial extrema: those of reductions, and of what takes such."""
        for tensor, placement in made:
            if not isinstance(placement, Partial) or placement.kind == "sum":
                continue
            partial = [source for source, place in taken if place == placement]
            if all((source, placement.kind) in self._reduced for source in partial):
                self._reduced.add((tensor, placement.kind))

    def _useless(self) -> set[int]:
        """Paths with pieces that nothing makes or nothing takes, and those that need them."""
        paths = {self._find(at) for (_, shard), at in self._numbers.items() if shard.pieces}
        if not paths:
            return set()
        ways = [
            _Way(tuple(map(self._find, way.taken)), tuple(map(self._find, way.made)))
            for way in self._ways
        ]
        ways = [way for way in ways if not paths.isdisjoint((*way.taken, *way.made))]
        beside = {(self._find(one), self._find(other)) for one, other in self._beside}
        given, wanted = self._ends()
        dead: set[int] = set()
        while True:
            alive = [way for way in ways if dead.isdisjoint((*way.taken, *way.made))]
            made = {item for way in alive for item in way.made}
            taken = {item for way in alive for item in way.taken}
            helps = {one for one, other in beside if other not in dead}
            serve = (made | given) & (taken | wanted) & (made | taken)
            before = len(dead)
            dead |= paths - serve - helps
            if len(dead) == before:
                return dead

    def _ends(self) -> tuple[set[int], set[int]]:
        """Paths that begin at what is given, and those that end in gradients and outputs."""
        sources = {*self._sites.givens(), *(p.source for p in self._sites.parameters)}
        sinks = {
            self._sites.inputs_of(node)[position]
            for parameter in self._sites.parameters
            for node, position in parameter.sinks
        }
        sinks.update(self._sites.inputs_of(self._sites.graph.output_node()))
        numbers = self._numbers.items()
        given = {self._find(at) for (tensor, _), at in numbers if tensor[0] in sources}
        return given, {self._find(at) for (tensor, _), at in numbers if tensor in sinks}


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())
