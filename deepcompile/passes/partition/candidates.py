"""Which shards in pieces are worth considering for each tensor of a graph.

Plain shards are considered everywhere. Pieces arise where dimensions are split, joined, or
flattened, and are of use only if the operations on the way there know them too: so they spread
along factors and views, both ways, until nothing changes. Then those that lead nowhere go
(`useful.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch.fx import Node

from deepcompile.ir.placements import Shard, divides
from deepcompile.passes.partition.rules import rule_of
from deepcompile.passes.partition.sites import Sites, TensorId
from deepcompile.passes.partition.strategy import (
    Rule,
    Strategy,
    enumerate_strategies,
    outputs_of,
    tensor_inputs,
)
from deepcompile.passes.partition.useful import Uses

MOST_PER_DIMENSION = 4
"""Shards in pieces of one dimension of a tensor; the first to be found stay."""


_ZEROS = {torch.ops.aten.scalar_tensor.default, torch.ops.aten.full.default}
"""What makes tensors of which a rule may know that they are zero."""


class Candidates:
    """Of a graph on an axis of so many ranks.

    Args:
        sites: the graph.
        ranks: numbers of ranks of the axes; pieces must be divisible by one of them at least.
    """

    def __init__(self, sites: Sites, ranks: Iterable[int]) -> None:
        self._ranks = [count for count in ranks if count > 1]
        self._found: dict[TensorId, dict[Shard, None]] = {}
        self.rules: dict[Node, Rule | None] = {node: rule_of(node) for node in sites.steps()}
        self._sites = sites
        self._inputs = {node: sites.inputs_of(node) for node in self.rules}
        self._users: dict[TensorId, list[Node]] = {}
        for node, tensors in self._inputs.items():
            for tensor in tensors:
                self._users.setdefault(tensor, []).append(node)
        self._spread(self.rules)
        self._enumerate()

    def suggest(self, tensor: TensorId, shard: Shard) -> None:
        """Consider pieces that the graph does not give rise to, and what follows from them."""
        changed: list[TensorId] = []
        self._add(tensor, shard, changed)
        for known in changed:
            maker = [known[0]] if known[0] in self.rules else []
            self._spread([*self._users.get(known, ()), *maker])
        self._enumerate()

    def of(self, tensor: TensorId) -> Mapping[Shard, None]:
        """Shards in pieces of a tensor."""
        return self._found.get(tensor, {})

    def all_of(self, tensor: TensorId) -> list[Shard]:
        """Plain shards and shards in pieces."""
        value = outputs_of(tensor[0])[tensor[1]]
        plain = (
            [Shard(dim) for dim, extent in enumerate(value.shape) if extent != 1]
            if (value is not None)
            else []
        )
        return [*plain, *self.of(tensor)]

    def strategies(self, node: Node) -> tuple[Strategy, ...]:
        """Those of a node that are of use; unchecked for division."""
        return self._strategies[node]

    def _kind(self, node: Node) -> object:
        """Equal for nodes that do the same to tensors of the same shapes and candidates."""
        inputs = tensor_inputs(node)
        same = tuple(inputs.index(source) for source in inputs)
        made = outputs_of(node)
        tensors = [*self._inputs[node], *((node, index) for index in range(len(made)))]
        shapes = tuple(
            (tuple(value.shape), value.dtype) if value is not None else None
            for value in (outputs_of(maker)[index] for maker, index in tensors)
        )
        pieces = tuple(tuple(self.of(tensor)) for tensor in tensors)
        plain = torch.fx.node.map_arg(
            (node.args, node.kwargs), lambda source: source.target in _ZEROS
        )
        # What a rule has depends on strides too, for the few that look at them.
        rule = self.rules[node]
        structure = (len(rule.factors), rule.relation is None) if rule is not None else None
        return node.target, str(plain), same, shapes, pieces, structure

    def _enumerated(self, node: Node) -> Iterator[Strategy]:
        made = self._inputs[node]

        def shards(position: int, is_output: bool) -> list[Shard]:
            return self.all_of((node, position) if is_output else made[position])

        return enumerate_strategies(node, self.rules[node], shards)

    def _enumerate(self) -> None:
        """Strategies of all nodes; pieces and strategies that lead nowhere go."""
        self.kinds = {node: self._kind(node) for node in self.rules}
        known: dict[object, tuple[Strategy, ...]] = {}
        for node, kind in self.kinds.items():
            if kind not in known:
                known[kind] = tuple(self._enumerated(node))
        every = {node: known[kind] for node, kind in self.kinds.items()}
        uses = Uses(self._sites, self._inputs, every)
        for tensor, found in self._found.items():
            self._found[tensor] = {s: None for s in found if uses.serves(tensor, s)}
        self._strategies = {
            node: tuple(way for way in ways if uses.has(node, way)) for node, ways in every.items()
        }

    def _spread(self, start: Iterable[Node]) -> None:
        queue = dict.fromkeys(start)
        while queue:
            node = next(iter(queue))
            del queue[node]
            for tensor in self._spread_over(node):
                queue.update(dict.fromkeys(self._users.get(tensor, ())))
                if tensor[0] in self.rules:
                    queue[tensor[0]] = None

    def _spread_over(self, node: Node) -> list[TensorId]:
        """Tensors for which a node brought something new."""
        rule = self.rules[node]
        if rule is None:
            return []
        inputs = self._inputs[node]
        outputs = [(node, index) for index in range(len(outputs_of(node)))]
        changed: list[TensorId] = []
        for tensors, known in zip((inputs, outputs), rule.pieces, strict=True):
            for position, shards in known.items():
                for shard in shards:
                    self._add(tensors[position], shard, changed)
        for factor in rule.factors:
            if factor.whole:
                continue
            members = [
                (tensor, dim)
                for tensors, dims in ((inputs, factor.inputs), (outputs, factor.outputs))
                for tensor, dim in zip(tensors, dims, strict=True)
                if dim is not None
            ]
            pieces = {
                shard.pieces: None
                for tensor, dim in members
                for shard in self.of(tensor)
                if shard.dim == dim
            }
            for tensor, dim in members:
                for parts in pieces:
                    self._add(tensor, Shard(dim, parts), changed)
        if rule.relation is not None:
            (source,), (result,) = inputs, outputs
            for shard in self.all_of(source):
                self._add(result, rule.relation.forward(shard), changed)
            for shard in self.all_of(result):
                self._add(source, rule.relation.backward(shard), changed)
        return changed

    def _add(self, tensor: TensorId, shard: Shard | None, changed: list[TensorId]) -> None:
        if shard is None or not shard.pieces:
            return
        found = self._found.setdefault(tensor, {})
        value = outputs_of(tensor[0])[tensor[1]]
        if shard in found or value is None:
            return
        if sum(other.dim == shard.dim for other in found) >= MOST_PER_DIMENSION:
            return
        if any(divides(value.shape[shard.dim], shard, ranks) for ranks in self._ranks):
            found[shard] = None
            changed.append(tensor)
