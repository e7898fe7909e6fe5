"""Views: permutations, broadcasts, and reshapes that split and join dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PartialKind, Shard
from deepcompile.passes.partition.rules.reductions import argument
from deepcompile.passes.partition.strategy import (
    Factor,
    Relation,
    Rule,
    linear_in,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten

_ALL: tuple[PartialKind, ...] = ("sum", "max", "min")
MOST_PIECES = 64
"""A dimension is not sharded in more pieces than this: each is a copy of its own."""


def _linear(node: Node) -> tuple[Any, ...]:
    return linear_in(node, (0,), kinds=_ALL)


def _moved(node: Node, places: Sequence[int]) -> Rule:
    """Dimension `places[i]` of the input becomes dimension i."""
    shape = shape_of(tensor_inputs(node)[0])
    factors = tuple(
        Factor((source,), (place,)) for place, source in enumerate(places) if shape[source] > 1
    )
    return Rule(factors, _linear(node))


@rule_for(aten.permute.default)
def _permute(node: Node) -> Rule:
    rank = len(shape_of(node))
    return _moved(node, [int(dim) % rank for dim in node.args[1]])  # type: ignore


@rule_for(aten.transpose.int)
def _transpose(node: Node) -> Rule:
    places = list(range(len(shape_of(node))))
    first, second = (int(dim) % len(places) for dim in node.args[1:3])  # type: ignore[arg-type]
    places[first], places[second] = places[second], places[first]
    return _moved(node, places)


@rule_for(aten.t.default)
def _t(node: Node) -> Rule:
    return _moved(node, list(range(len(shape_of(node))))[::-1])


@rule_for(aten.expand.default)
def _expand(node: Node) -> Rule:
    shape, result = shape_of(tensor_inputs(node)[0]), shape_of(node)
    lead = len(result) - len(shape)
    factors = []
    for dim, extent in enumerate(result):
        if extent > 1:
            own = dim - lead
            factors.append(Factor((own if own >= 0 and shape[own] > 1 else None,), (dim,)))
    return Rule(tuple(factors), _linear(node), localise=_to_shape)


@rule_for(aten.diagonal.default)
def _diagonal(node: Node) -> Rule:
    """Dimensions beside the two that make one; that one comes last."""
    shape = shape_of(tensor_inputs(node)[0])
    first, second = (
        int(argument(node, place, name, default)) % len(shape)
        for place, name, default in ((2, "dim1", 0), (3, "dim2", 1))
    )
    kept = [dim for dim in range(len(shape)) if dim not in (first, second)]
    factors = tuple(Factor((dim,), (place,)) for place, dim in enumerate(kept) if shape[dim] > 1)
    return Rule(factors, _linear(node))


@rule_for(aten.unfold.default)
def _unfold(node: Node) -> Rule:
    shape = shape_of(tensor_inputs(node)[0])
    mixed = int(node.args[1]) % len(shape)  # type: ignore[arg-type]
    factors = tuple(
        Factor((dim,), (dim,)) for dim, extent in enumerate(shape) if dim != mixed and extent > 1
    )
    return Rule(factors, _linear(node))


@rule_for(aten.tril.default, aten.triu.default)
def _triangle(node: Node) -> Rule:
    shape = shape_of(node)
    factors = tuple(
        Factor((dim,), (dim,), whole=dim >= len(shape) - 2)
        for dim, extent in enumerate(shape)
        if extent > 1
    )
    return Rule(factors, linear_in(node, (0,)), localise=_local_triangle)


def _local_triangle(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows and columns count from where this rank's part begins."""
    rank, local = len(shape_of(node)), emit.output_shape(0)
    starts = [emit.start(emit.outputs[0], dim, local[dim]) for dim in (rank - 2, rank - 1)]
    if starts == [None, None]:
        return emit.call(node.target, *args, **kwargs)
    places = []
    for start, extent in zip(starts, local[-2:], strict=True):
        here = emit.call(aten.arange.default, extent, device=node.meta["val"].device)
        places.append(here if start is None else emit.call(aten.add.Tensor, here, start))
    rows = emit.call(aten.unsqueeze.default, places[0], 1)
    above = emit.call(aten.sub.Tensor, places[1], rows)
    compare = aten.le.Scalar if node.target is aten.tril.default else aten.ge.Scalar
    kept = emit.call(compare, above, argument(node, 1, "diagonal", 0))
    return emit.call(aten.where.self, kept, args[0], emit.scalar(0, args[0]))


def _to_shape(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return emit.call(node.target, args[0], list(emit.output_shape(0)), **kwargs)


@rule_for(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
@rule_for(aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default, aten.unsqueeze.default)
def _view(node: Node) -> Rule:
    source, target = shape_of(tensor_inputs(node)[0]), shape_of(node)
    if 0 in source:
        return Rule()
    relation = Relation(
        lambda shard: reshaped(source, target, shard),
        lambda shard: reshaped(target, source, shard),
    )
    resizes = node.target in (
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
    )
    # Where nothing is shared too: what was moved before may lie otherwise than on one device.
    return Rule(
        (),
        _linear(node),
        relation=relation,
        localise=_local_view if resizes else None,
        always=resizes,
    )


@rule_for(aten.as_strided.default)
def _strided(node: Node) -> Rule:
    """Shared only where it is a reshape."""
    source, result = tensor_inputs(node)[0].meta["val"], node.meta["val"]
    whole = source.numel() == result.numel() and not result.storage_offset()
    if not (whole and source.is_contiguous() and result.is_contiguous()):
        return Rule(localise=_as_it_lay, always=True)
    shapes = shape_of(tensor_inputs(node)[0]), shape_of(node)
    relation = Relation(
        lambda shard: reshaped(*shapes, shard), lambda shard: reshaped(*shapes[::-1], shard)
    )
    return Rule((), _linear(node), relation=relation, localise=_local_view, always=True)


@rule_for(aten.as_strided_scatter.default)
def _strided_scatter(node: Node) -> Rule:
    return Rule(localise=_as_it_lay, always=True)


def _as_it_lay(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Strides say where in memory to read: the input lies as on one device."""
    example = tensor_inputs(node)[0].meta["val"]
    value = args[0]
    if value.meta["val"].stride() != example.stride():
        place = emit.call(
            aten.empty_strided.default,
            list(example.shape),
            list(example.stride()),
            dtype=example.dtype,
            device=example.device,
        )
        value = emit.call(aten.copy.default, place, value)
    return emit.call(node.target, value, *args[1:], **kwargs)


def _local_view(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # What is one block of memory on one device may not be one here.
    return emit.reshaped(args[0], emit.output_shape(0))


def reshaped(source: Sequence[int], target: Sequence[int], shard: Shard) -> Shard | None:
    """Where the parts of a sharded tensor lie in a reshape of it; None where they are no shard.

    `source` and `target` are shapes with equally many elements. A sharded dimension that is joined
    with ones before it is sharded in pieces, one for each of their elements; one that is split is
    sharded at the first part that is long enough to be.
    """
    if shard.dim >= len(source) or source[shard.dim] == 1:
        return None
    block = _block_of(source, target, shard.dim)
    if block is None:
        return None
    ours, theirs = block
    place = ours.index(shard.dim)
    outer = _product([source[dim] for dim in ours[:place]])
    inner = _product([source[dim] for dim in ours[place + 1 :]])
    # The block as one dimension: pieces of elements that are sharded each on its own.
    own = shard.pieces or (source[shard.dim],)
    if outer * len(own) > MOST_PIECES:
        return None
    flat = tuple(part * inner for part in own) * outer
    return _unflattened(flat, theirs, target)


def _unflattened(flat: Sequence[int], dims: Sequence[int], target: Sequence[int]) -> Shard | None:
    """Pieces of a flat dimension as a shard of the innermost that can be, of those it becomes."""
    for place in reversed(range(len(dims))):
        dim = dims[place]
        outer = _product([target[other] for other in dims[:place]])
        inner = _product([target[other] for other in dims[place + 1 :]])
        period = tuple(flat[: len(flat) // outer])
        if not period or period * outer != tuple(flat):
            continue
        if all(part % inner == 0 for part in period):
            pieces = tuple(part // inner for part in period)
            if sum(pieces) == target[dim]:
                return Shard(dim, () if len(pieces) == 1 else pieces)
    return None


def _block_of(
    source: Sequence[int], target: Sequence[int], dim: int
) -> tuple[list[int], list[int]] | None:
    """The smallest runs of dimensions of both shapes that hold `dim` and equally many elements.

    Dimensions of one element belong to none.
    """
    left = [place for place, extent in enumerate(source) if extent != 1]
    right = [place for place, extent in enumerate(target) if extent != 1]
    while left:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        more, less = source[ours[0]], target[theirs[0]]
        while more != less:
            if more < less:
                ours.append(left.pop(0))
                more *= source[ours[-1]]
            else:
                theirs.append(right.pop(0))
                less *= target[theirs[-1]]
        if dim in ours:
            return ours, theirs
    return None


def _product(extents: Sequence[int]) -> int:
    result = 1
    for extent in extents:
        result *= extent
    return result
