"""Operations that read or write where a tensor of indices says.

Along the indexed dimension each rank serves the indices that point into its part: its result is a
part of a sum (reading) or its part of the result (writing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PARTIAL, REPLICATE, Placement, Shard
from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    Strategy,
    linear_in,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


def _here(emit: Any, index: Any, placements: Any, dim: int, extent: int) -> tuple[Any, Any]:
    """Indices counted from where this rank's part starts, those elsewhere as 0; and which are here.

    None for which where the dimension is not sharded.
    """
    start = emit.start(placements, dim, extent)
    if start is None:
        return index, None
    local = emit.call(aten.sub.Tensor, index, start)
    inside = emit.call(
        aten.bitwise_and.Tensor,
        emit.call(aten.ge.Scalar, local, 0),
        emit.call(aten.lt.Scalar, local, extent),
    )
    zero = emit.scalar(0, local)
    return emit.call(aten.where.self, inside, local, zero), inside


def _zero_elsewhere(emit: Any, value: Any, inside: Any, trailing: int = 0) -> Any:
    if inside is None:
        return value
    for _ in range(trailing):
        inside = emit.call(aten.unsqueeze.default, inside, -1)
    return emit.call(aten.where.self, inside, value, emit.scalar(0, value))


@rule_for(aten.embedding.default)
def _embedding(node: Node) -> Rule:
    index = shape_of(tensor_inputs(node)[1])
    rank = len(index)
    factors = [Factor((None, dim), (dim,)) for dim, extent in enumerate(index) if extent > 1]
    factors.append(Factor((1, None), (rank,)))
    factors.append(Factor((0, None), (None,), "sum", whole=True))
    return Rule(tuple(factors), linear_in(node, (0,)), localise=_local_embedding)


def _local_embedding(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    index, inside = _here(emit, args[1], emit.inputs[0], 0, emit.input_shape(0)[0])
    if inside is None:
        return emit.call(node.target, *args, **kwargs)
    # Where padding is says the index of the whole table, which only gradients need.
    found = emit.call(node.target, args[0], index)
    return _zero_elsewhere(emit, found, inside, 1)


@rule_for(aten.embedding_dense_backward.default)
def _embedding_backward(node: Node) -> Rule:
    index = shape_of(tensor_inputs(node)[1])
    rank = len(index)
    scaled = bool(node.args[4])
    factors = [Factor((rank, None), (1,))]
    if not scaled:
        # How often an index occurs is known only where all are.
        factors.append(Factor((None, None), (0,), whole=True))
        factors += [
            Factor((dim, dim), (None,), "sum") for dim, extent in enumerate(index) if extent > 1
        ]
    return Rule(tuple(factors), linear_in(node, (0,)), localise=_local_embedding_backward)


def _local_embedding_backward(
    emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    grad, index, _, padding, scaled = args
    extent = emit.output_shape(0)[0]
    local, inside = _here(emit, index, emit.outputs[0], 0, extent)
    if inside is None:
        return emit.call(node.target, grad, index, extent, padding, scaled)
    if padding >= 0:
        kept = emit.call(aten.ne.Scalar, index, padding)
        inside = emit.call(aten.bitwise_and.Tensor, inside, kept)
    grad = _zero_elsewhere(emit, grad, inside, 1)
    return emit.call(node.target, grad, local, extent, -1, scaled)


@rule_for(aten.gather.default)
def _gather(node: Node) -> Rule:
    source, index = (shape_of(value) for value in tensor_inputs(node))
    if not source or len(source) != len(index):
        return Rule()
    dim = int(node.args[1]) % len(source)  # type: ignore[arg-type]
    factors = [
        Factor((place, place), (place,))
        for place, extent in enumerate(index)
        if place != dim and extent == source[place] > 1
    ]
    factors.append(Factor((None, dim), (dim,)))
    factors.append(Factor((dim, None), (None,), "sum", whole=True))
    return Rule(tuple(factors), linear_in(node, (0,)), localise=_local_gather)


def _local_gather(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dim = int(node.args[1]) % len(shape_of(node))  # type: ignore[arg-type]
    index, inside = _here(emit, args[2], emit.inputs[0], dim, emit.input_shape(0)[dim])
    found = emit.call(node.target, args[0], dim, index, **kwargs)
    return _zero_elsewhere(emit, found, inside)


@rule_for(aten.index_select.default)
def _index_select(node: Node) -> Rule:
    source = shape_of(tensor_inputs(node)[0])
    dim = int(node.args[1]) % len(source)  # type: ignore[arg-type]
    factors = [
        Factor((place, None), (place,))
        for place, extent in enumerate(source)
        if place != dim and extent > 1
    ]
    factors.append(Factor((None, 0), (dim,)))
    factors.append(Factor((dim, None), (None,), "sum", whole=True))
    return Rule(tuple(factors), linear_in(node, (0,)), localise=_local_index_select)


def _local_index_select(
    emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    rank = len(shape_of(node))
    dim = int(args[1]) % rank
    index, inside = _here(emit, args[2], emit.inputs[0], dim, emit.input_shape(0)[dim])
    found = emit.call(node.target, args[0], dim, index)
    return _zero_elsewhere(emit, found, inside, rank - dim - 1)


@dataclass(frozen=True)
class _Layout:
    """How `index` and `index_put` read and write dimensions.

    Attributes:
        places: dimensions with a tensor of indices.
        shapes: of those tensors.
        first: where their dimensions are in what is read.
        read: the shape of what is read.
        moved: where the other dimensions are in what is read.
    """

    places: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    first: int
    read: tuple[int, ...]
    moved: Mapping[int, int]

    @property
    def indexed(self) -> tuple[int, ...]:
        """The dimensions of what is read that indices make."""
        count = len(self.read) - len(self.moved)
        return tuple(range(self.first, self.first + count))

    def trailing(self) -> int:
        """How many dimensions follow those."""
        return len(self.read) - self.first - len(self.indexed)

    def own(self, dim: int) -> tuple[int | None, ...]:
        """The dimension of each index tensor that a dimension of what is read is."""
        found: list[int | None] = []
        for shape in self.shapes:
            place = dim - self.first - (len(self.indexed) - len(shape))
            found.append(place if place >= 0 and shape[place] > 1 else None)
        return tuple(found)


def _layout(base: tuple[int, ...], indices: Sequence[Any]) -> _Layout | None:
    """None for indices that are masks: how much they read is not known."""
    places = tuple(place for place, index in enumerate(indices) if index is not None)
    tensors = [indices[place].meta["val"] for place in places]
    if any(value.dtype in (torch.bool, torch.uint8) for value in tensors):
        return None
    shapes = tuple(tuple(value.shape) for value in tensors)
    common = tuple(torch.broadcast_shapes(*shapes))
    adjacent = places == tuple(range(places[0], places[-1] + 1))
    first = places[0] if adjacent else 0
    others = [dim for dim in range(len(base)) if dim not in places]
    moved = {dim: at if at < first else at + len(common) for at, dim in enumerate(others)}
    kept = [base[dim] for dim in others]
    return _Layout(places, shapes, first, (*kept[:first], *common, *kept[first:]), moved)


@rule_for(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(node: Node) -> Rule:
    source = shape_of(tensor_inputs(node)[0])
    layout = _layout(source, node.args[1])  # type: ignore[arg-type]
    if layout is None:
        return Rule()
    nothing = (None,) * len(layout.places)
    factors = [
        Factor((dim, *nothing), (out,)) for dim, out in layout.moved.items() if source[dim] > 1
    ]
    factors += [
        Factor((None, *layout.own(dim)), (dim,)) for dim in layout.indexed if layout.read[dim] > 1
    ]
    factors += [
        Factor((dim, *nothing), (None,), "sum", whole=True)
        for dim in layout.places
        if source[dim] > 1
    ]
    return Rule(tuple(factors), linear_in(node, (0,)), localise=_local_index)


def _shifted(
    emit: Any, indices: Sequence[Any], placements: Any, whole: Sequence[int], local: Sequence[int]
) -> tuple[list[Any], Any]:
    """Indices counted from where this rank's part starts, and which of them point into it."""
    shifted, everywhere = list(indices), None
    for dim, index in enumerate(indices):
        if index is None or local[dim] == whole[dim]:
            continue
        negative = emit.call(aten.lt.Scalar, index, 0)
        wrapped = emit.call(aten.add.Scalar, index, whole[dim])
        index = emit.call(aten.where.self, negative, wrapped, index)
        shifted[dim], inside = _here(emit, index, placements, dim, local[dim])
        if everywhere is not None:
            inside = emit.call(aten.bitwise_and.Tensor, everywhere, inside)
        everywhere = inside
    return shifted, everywhere


def _local_index(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    whole = shape_of(tensor_inputs(node)[0])
    layout = _layout(whole, node.args[1])  # type: ignore[arg-type]
    assert layout is not None
    indices, inside = _shifted(emit, args[1], emit.inputs[0], whole, emit.input_shape(0))
    found = emit.call(node.target, args[0], indices)
    return _zero_elsewhere(emit, found, inside, layout.trailing())


@rule_for(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
@rule_for(aten.scatter_reduce.two)
def _scatter(node: Node) -> Rule:
    base, *others = (shape_of(value) for value in tensor_inputs(node))
    if not base:
        return Rule()
    dim = int(node.args[1]) % len(base)  # type: ignore[arg-type]
    count = len(others)
    factors = [
        Factor((place,) * (count + 1), (place,))
        for place, extent in enumerate(base)
        if place != dim and extent > 1 and all(other[place] == extent for other in others)
    ]
    factors.append(Factor((dim, *(None,) * count), (dim,), whole=True))
    adds = node.target is aten.scatter_add.default
    strategies: tuple[Strategy, ...] = ()
    if node.target is not aten.scatter_reduce.two:
        if count == 2:
            strategies = linear_in(node, (0, 2))
        elif node.args[3] == 0:
            strategies = linear_in(node, (0,))
    if adds and others[0] == others[1] and others[0][dim] > 1:
        strategies += (Strategy((PARTIAL,), (PARTIAL, Shard(dim), Shard(dim))),)
    return Rule(tuple(factors), strategies, localise=_local_scatter)


def _local_scatter(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What points elsewhere goes to one place more, which is cut off."""
    dim = int(args[1]) % len(shape_of(node))
    extent = emit.output_shape(0)[dim]
    index, inside = _here(emit, args[2], emit.outputs[0], dim, extent)
    if inside is None:
        return emit.call(node.target, *args, **kwargs)
    index = emit.call(aten.where.self, inside, index, emit.scalar(extent, index))
    longer = _one_longer(emit, args[0], [dim])
    written = emit.call(node.target, longer, dim, index, *args[3:], **kwargs)
    return emit.call(aten.slice.Tensor, written, dim, 0, extent)


def _one_longer(emit: Any, value: Any, dims: Sequence[int]) -> Any:
    rank = len(value.meta["val"].shape)
    padding = [int(rank - 1 - at // 2 in dims and at % 2 == 1) for at in range(2 * rank)]
    return emit.call(aten.constant_pad_nd.default, value, padding, 0)


@rule_for(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(node: Node) -> Rule:
    indices: Any = node.args[1]
    inputs = tensor_inputs(node)
    base, values = shape_of(inputs[0]), shape_of(inputs[-1])
    layout = _layout(base, indices)
    if layout is None:
        return _masked_put(node, base, values)
    nothing = (None,) * len(layout.places)

    def of_values(dim: int) -> int | None:
        place = dim - (len(layout.read) - len(values))
        return place if place >= 0 and values[place] == layout.read[dim] > 1 else None

    factors = [
        Factor((dim, *nothing, of_values(out)), (dim,))
        for dim, out in layout.moved.items()
        if base[dim] > 1
    ]
    factors += [
        Factor((dim, *nothing, None), (dim,), whole=True) for dim in layout.places if base[dim] > 1
    ]
    strategies = linear_in(node, (0, len(inputs) - 1))
    if _accumulates(node):
        for dim in layout.indexed:
            if layout.read[dim] == 1:
                continue
            taken = [_at(place) for place in (*layout.own(dim), of_values(dim))]
            strategies += (Strategy((PARTIAL,), (PARTIAL, *taken)),)
    return Rule(tuple(factors), strategies, localise=_local_index_put)


def _at(dim: int | None) -> Placement:
    return REPLICATE if dim is None else Shard(dim)


def _accumulates(node: Node) -> bool:
    return bool(node.args[3]) if len(node.args) > 3 else False


def _masked_put(node: Node, base: tuple[int, ...], values: tuple[int, ...]) -> Rule:
    """One value where a mask says: each element alone."""
    indices: Any = node.args[1]
    places = [place for place, index in enumerate(indices) if index is not None]
    if len(places) != 1 or any(extent != 1 for extent in values):
        return Rule()
    first, rank = places[0], len(shape_of(indices[places[0]]))
    factors = tuple(
        Factor((dim, dim - first if 0 <= dim - first < rank else None, None), (dim,))
        for dim, extent in enumerate(base)
        if extent > 1
    )
    return Rule(factors, linear_in(node, (0, 2)))


def _local_index_put(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    whole, local = shape_of(node), emit.output_shape(0)
    layout = _layout(whole, node.args[1])  # type: ignore[arg-type]
    if layout is None:
        return emit.call(node.target, *args, **kwargs)
    indices, inside = _shifted(emit, args[1], emit.outputs[0], whole, local)
    if inside is None:
        return emit.call(node.target, *args, **kwargs)
    if _accumulates(node):
        values = _zero_elsewhere(emit, args[2], inside, layout.trailing())
        return emit.call(node.target, args[0], indices, values, *args[3:])
    # What points elsewhere goes to one row more, which is cut off.
    dims = [dim for dim in layout.places if local[dim] != whole[dim]]
    for dim in dims:
        last = emit.scalar(local[dim], indices[dim])
        indices[dim] = emit.call(aten.where.self, inside, indices[dim], last)
    written = emit.call(node.target, _one_longer(emit, args[0], dims), indices, *args[2:])
    for dim in dims:
        written = emit.call(aten.slice.Tensor, written, dim, 0, local[dim])
    return written


@rule_for(aten.index_add.default)
def _index_add(node: Node) -> Rule:
    base, _, source = (shape_of(value) for value in tensor_inputs(node))
    dim = int(node.args[1]) % len(base)  # type: ignore[arg-type]
    factors = tuple(
        Factor((place, None, place), (place,))
        for place, extent in enumerate(base)
        if place != dim and extent > 1
    )
    strategies = linear_in(node, (0, 2))
    if source[dim] > 1:
        strategies += (Strategy((PARTIAL,), (PARTIAL, Shard(0), Shard(dim))),)
    return Rule(factors, strategies)


@rule_for(aten.bucketize.Tensor)
def _bucketize(node: Node) -> Rule:
    return Rule(tuple(Factor((dim, None), (dim,)) for dim, e in enumerate(shape_of(node)) if e > 1))


@rule_for(aten.searchsorted.Tensor)
def _searchsorted(node: Node) -> Rule:
    """Where the sorted sequence is one; else rows go with rows."""
    if len(tensor_inputs(node)) != 2:
        return Rule()
    rows = len(shape_of(tensor_inputs(node)[0])) - 1
    shape = shape_of(node)
    return Rule(
        tuple(
            Factor((dim if rows and dim < rows else None, dim), (dim,))
            for dim, extent in enumerate(shape)
            if extent > 1
        )
    )
