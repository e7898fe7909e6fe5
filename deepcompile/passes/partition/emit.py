"""Nodes of a rank's own graph: operations on local tensors, and the steps of moves."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

from deepcompile.capture import rank_ops
from deepcompile.ir.placements import Placement, Placements, Shard, local_shape
from deepcompile.passes.partition.moves import COLLECTIVES, Step

aten = torch.ops.aten
c10d = torch.ops._c10d_functional

_NOT_COPIED = frozenset({"val", "tensor_meta", "recompute"})


class Emitter:
    """Adds nodes to a graph, with fake values, on behalf of one node of the one-device graph.

    Args:
        graph: of one rank.
        mode: that fake values are made in.
        sizes: ranks of each axis of the mesh.
        groups: the name of this rank's process group on each axis.
        data: axes on which ranks have a batch each.

    Attributes:
        inputs: placements of the tensors that the node takes.
        outputs: placements of those that it makes.
        data_axes: those of more than one rank on which ranks have a batch each.
        tensor_axes: the others.
    """

    def __init__(
        self,
        graph: Graph,
        mode: FakeTensorMode,
        sizes: Sequence[int],
        groups: Sequence[str],
        data: Sequence[int] = (),
    ) -> None:
        self.graph = graph
        self.mode = mode
        self.sizes = tuple(sizes)
        self.groups = tuple(groups)
        axes = [axis for axis, ranks in enumerate(self.sizes) if ranks > 1]
        self.data_axes = tuple(axis for axis in axes if axis in data)
        self.tensor_axes = tuple(axis for axis in axes if axis not in data)
        self.inputs: tuple[Placements, ...] = ()
        self.outputs: tuple[Placements, ...] = ()
        self._input_shapes: list[tuple[int, ...]] = []
        self._output_shapes: list[tuple[int, ...] | None] = []
        self._meta: dict[str, Any] = {}
        self._device = torch.device("cpu")
        self._ranks_of: dict[tuple[int, torch.device], Node] = {}
        self.recomputed = False

    def behalf(self, source: Node) -> None:
        """What follows is for `source`: it has that one's origin."""
        self._meta = {key: fact for key, fact in source.meta.items() if key not in _NOT_COPIED}

    def replace(
        self,
        source: Node,
        inputs: Sequence[tuple[tuple[int, ...], Placements]],
        outputs: Sequence[tuple[tuple[int, ...] | None, Placements]],
        device: torch.device,
    ) -> None:
        """What follows computes a rank's part of `source`; whole shapes and placements."""
        self.behalf(source)
        if "recompute" in source.meta:
            self._meta["recompute"] = source.meta["recompute"]
        self.inputs = tuple(placements for _, placements in inputs)
        self.outputs = tuple(placements for _, placements in outputs)
        self._input_shapes = [shape for shape, _ in inputs]
        self._output_shapes = [shape for shape, _ in outputs]
        self._device = device

    def input_shape(self, position: int) -> tuple[int, ...]:
        """Of a rank's part of an input."""
        return local_shape(self._input_shapes[position], self.inputs[position], self.sizes)

    def output_shape(self, position: int) -> tuple[int, ...]:
        """Of a rank's part of an output."""
        shape = self._output_shapes[position]
        assert shape is not None
        return local_shape(shape, self.outputs[position], self.sizes)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A node, with the fake value that it makes of those of its arguments."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = dict(self._meta)
        values, options = torch.fx.node.map_arg((args, kwargs), lambda source: source.meta["val"])
        with self.mode:
            node.meta["val"] = target(*values, **options)
        if self.recomputed:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        return node

    def reshaped(self, value: Node, shape: Sequence[int]) -> Node:
        """A view, of a copy where the tensor is not one block of memory as views need it."""
        try:
            return self.call(aten.view.default, value, list(shape))
        except (RuntimeError, ValueError):
            self.graph.erase_node(next(iter(reversed(self.graph.nodes))))
        block = self.call(aten.clone.default, value, memory_format=torch.contiguous_format)
        return self.call(aten.view.default, block, list(shape))

    def scalar(self, value: float, like: Node) -> Node:
        """A tensor without dimensions, of the dtype of another."""
        example = like.meta["val"]
        return self.call(
            aten.scalar_tensor.default, value, dtype=example.dtype, device=example.device
        )

    def start(self, placements: Placements, dim: int, extent: int) -> Node | None:
        """Where this rank's part of a dimension begins; None where every rank has all of it.

        Args:
            placements: of the tensor, its dimension sharded in one piece.
            dim: which.
            extent: of this rank's part.
        """
        place: Node | None = None
        for axis, placement in enumerate(placements):
            if isinstance(placement, Shard) and placement.dim == dim:
                rank = self.rank_of(axis)
                if place is None:
                    place = rank
                else:
                    place = self.call(aten.mul.Scalar, place, self.sizes[axis])
                    place = self.call(aten.add.Tensor, place, rank)
        return None if place is None else self.call(aten.mul.Scalar, place, extent)

    def rank_of(self, axis: int) -> Node:
        """This rank's place on an axis, as a tensor."""
        key = axis, self._device
        if key not in self._ranks_of:
            self._ranks_of[key] = self.call(
                rank_ops.rank_of, self.groups[axis], device=self._device
            )
        return self._ranks_of[key]

    def from_first(self, value: Node) -> Node:
        """What the first rank of all tensor axes has, on all of them."""
        for axis in self.tensor_axes:
            sent = self.call(c10d.broadcast.default, _rows(self, value), 0, self.groups[axis])
            value = self.call(c10d.wait_tensor.default, sent)
        return value

    # -- moves ----------------------------------------------------------------------------------

    def strided_as(self, value: Node, node: Node) -> Node:
        """In memory that lies as that of a marker does, which is in one block."""
        if value.meta["val"].stride() == node.meta["val"].stride():
            return value
        return self.call(aten.clone.default, value, memory_format=torch.contiguous_format)

    def launch(self, step: Step, value: Node) -> Node:
        """A step without its end: of a collective, the result before it is there."""
        ranks, group = self.sizes[step.axis], self.groups[step.axis]
        match step.kind:
            case "all_gather":
                return self.call(
                    c10d.all_gather_into_tensor.default, _rows(self, value), ranks, group
                )
            case "all_reduce":
                kind = getattr(step.source, "kind", "sum")
                return self.call(c10d.all_reduce.default, _rows(self, value), kind, group)
            case "reduce_scatter":
                kind = getattr(step.source, "kind", "sum")
                parts = self._parts_in_front(value, step.target, ranks)
                return self.call(c10d.reduce_scatter_tensor.default, parts, kind, ranks, group)
            case "all_to_all":
                parts = self._parts_in_front(value, step.target, ranks)
                rows = parts.meta["val"].shape[0] // ranks
                splits = [rows] * ranks
                return self.call(c10d.all_to_all_single.default, parts, splits, splits, group)
            case "part":
                dim, pieces = _shard(step.target)
                return self.call(rank_ops.own_part, value, dim, pieces, ranks, group)
            case "spread":
                dim, pieces = _shard(step.source)
                return self.call(rank_ops.spread_part, value, dim, pieces, ranks, group)
            case _:
                return self.call(rank_ops.own_value, value, group)

    def finish(self, step: Step, launched: Node, before: Node) -> Node:
        """The tensor that a launched step gives; `before` is what it was launched on."""
        if step.kind not in COLLECTIVES:
            return launched
        here = self.call(c10d.wait_tensor.default, launched)
        if step.kind == "all_gather":
            return self._parts_together(here, step.source, self.sizes[step.axis])
        if step.kind == "all_to_all":
            return self._after_exchange(here, step, before)
        return here

    def _parts_in_front(self, value: Node, placement: Placement, ranks: int) -> Node:
        """The parts of all ranks, one after the other in the first dimension."""
        dim, pieces = _shard(placement)
        if dim == 0 and not pieces:
            return _rows(self, value)
        if not pieces:
            return self._folded_front(value, dim, ranks)
        split = self.call(aten.split_with_sizes.default, value, list(pieces), dim)
        fronts = [
            self._folded(self.call(operator.getitem, split, index), dim, ranks)
            for index in range(len(pieces))
        ]
        joined = self.call(aten.cat.default, fronts, dim + 1)
        shape = list(joined.meta["val"].shape)
        return self.reshaped(joined, [shape[0] * shape[1], *shape[2:]])

    def _folded(self, value: Node, dim: int, ranks: int) -> Node:
        """[ranks, ...] of parts along a dimension."""
        shape = list(value.meta["val"].shape)
        split = self.reshaped(
            value,
            [*shape[:dim], ranks, shape[dim] // ranks, *shape[dim + 1 :]],
        )
        order = [dim, *(place for place in range(len(shape) + 1) if place != dim)]
        return self.call(aten.permute.default, split, order)

    def _folded_front(self, value: Node, dim: int, ranks: int) -> Node:
        folded = self._folded(value, dim, ranks)
        shape = list(folded.meta["val"].shape)
        flat = self.call(aten.clone.default, folded, memory_format=torch.contiguous_format)
        return self.reshaped(flat, [shape[0] * shape[1], *shape[2:]])

    def _parts_together(self, value: Node, placement: Placement, ranks: int) -> Node:
        """One tensor of parts that lie one after the other in the first dimension."""
        dim, pieces = _shard(placement)
        if dim == 0 and not pieces:
            return value
        shape = list(value.meta["val"].shape)
        split = self.reshaped(value, [ranks, shape[0] // ranks, *shape[1:]])
        local = [ranks, shape[0] // ranks, *shape[1:]]
        if not pieces:
            return self._unfolded(split, dim)
        shares = [piece // ranks for piece in pieces]
        apart = self.call(aten.split_with_sizes.default, split, shares, dim + 1)
        assert sum(shares) == local[dim + 1]
        whole = [
            self._unfolded(self.call(operator.getitem, apart, index), dim)
            for index in range(len(shares))
        ]
        return self.call(aten.cat.default, whole, dim)

    def _unfolded(self, value: Node, dim: int) -> Node:
        """[ranks, ...] of parts as one tensor, joined along a dimension."""
        shape = list(value.meta["val"].shape)
        order = [*range(1, dim + 1), 0, *range(dim + 1, len(shape))]
        turned = self.call(aten.permute.default, value, order)
        flat = self.call(aten.clone.default, turned, memory_format=torch.contiguous_format)
        joined = [*shape[1 : dim + 1], shape[0] * shape[dim + 1], *shape[dim + 2 :]]
        return self.reshaped(flat, joined)

    def _after_exchange(self, here: Node, step: Step, before: Node) -> Node:
        """Parts from all ranks, joined along what was sharded before."""
        ranks = self.sizes[step.axis]
        target, _ = _shard(step.target)
        shape = list(before.meta["val"].shape)
        shape[target] //= ranks
        split = self.reshaped(here, [ranks * shape[0], *shape[1:]])
        return self._parts_together(split, step.source, ranks)


def _rows(emit: Emitter, value: Node) -> Node:
    """The tensor in one block of memory, as collectives take it."""
    if value.meta["val"].is_contiguous():
        return value
    return emit.call(aten.clone.default, value, memory_format=torch.contiguous_format)


def _shard(placement: Placement) -> tuple[int, tuple[int, ...]]:
    assert isinstance(placement, Shard)
    return placement.dim, placement.pieces
