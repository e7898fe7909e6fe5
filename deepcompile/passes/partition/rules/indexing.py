"""Operations that read or write where a tensor of indices says.

Along the indexed dimension each rank serves the indices that point into its part: its result is a
part of a sum (reading) or its part of the result (writing).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PARTIAL, REPLICATE, Shard
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
    factors = [Factor((rank, None), (1,)), Factor((None, None), (0,), whole=True)]
    if not scaled:
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
    return Rule(tuple(factors), linear_in(node, (0,)))


@rule_for(aten.index.Tensor)
def _index(node: Node) -> Rule:
    indices: Any = node.args[1]
    source = shape_of(tensor_inputs(node)[0])
    places = [place for place, index in enumerate(indices) if index is not None]
    tensors = [indices[place] for place in places]
    if any(value.meta["val"].dtype == torch.bool for value in tensors):
        return Rule()
    result = shape_of(node)
    indexed = len(result) - (len(source) - len(places))
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    count = len(tensors)
    factors = []
    for place, extent in enumerate(source):
        if place in places or extent == 1:
            continue
        out = place - sum(other < place for other in places) + (indexed if place > first else 0)
        if places != list(range(places[0], places[-1] + 1)):
            out = indexed + place - sum(other < place for other in places)
        factors.append(Factor((place, *(None,) * count), (out,)))
    for dim in range(indexed):
        extent = result[first + dim]
        if extent == 1:
            continue
        taken: list[int | None] = [None]
        for value in tensors:
            shape = shape_of(value)
            own = dim - (indexed - len(shape))
            taken.append(own if own >= 0 and shape[own] == extent else None)
        factors.append(Factor(tuple(taken), (first + dim,)))
    linear = linear_in(node, (0,))
    localise = None
    if count == 1:
        factors.append(Factor((places[0], None), (None,), "sum", whole=True))
        localise = _local_index
    return Rule(tuple(factors), linear, localise=localise)


def _local_index(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    indices = list(args[1])
    place = next(i for i, index in enumerate(indices) if index is not None)
    extent = emit.input_shape(0)[place]
    whole = shape_of(tensor_inputs(node)[0])[place]
    if extent == whole:
        return emit.call(node.target, *args, **kwargs)
    index = indices[place]
    negative = emit.call(aten.lt.Scalar, index, 0)
    index = emit.call(aten.where.self, negative, emit.call(aten.add.Scalar, index, whole), index)
    indices[place], inside = _here(emit, index, emit.inputs[0], place, extent)
    found = emit.call(node.target, args[0], indices)
    return _zero_elsewhere(emit, found, inside, len(shape_of(tensor_inputs(node)[0])) - place - 1)


@rule_for(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
def _scatter(node: Node) -> Rule:
    base, *others = (shape_of(value) for value in tensor_inputs(node))
    if not base:
        return Rule()
    dim = int(node.args[1]) % len(base)  # type: ignore[arg-type]
    count = len(others) + 1
    factors = tuple(
        Factor((place,) * count, (place,))
        for place, extent in enumerate(base)
        if place != dim and extent > 1 and all(other[place] == extent for other in others)
    )
    strategies: tuple[Strategy, ...] = ()
    if node.target is aten.scatter_add.default:
        strategies = linear_in(node, (0, 2))
        strategies += tuple(
            Strategy((PARTIAL,), (PARTIAL, Shard(place), Shard(place)))
            for place, extent in enumerate(others[0])
            if extent > 1 and place == dim and others[0] == others[1]
        )
    return Rule(factors, strategies)


@rule_for(aten.index_put.default)
def _index_put(node: Node) -> Rule:
    indices: Any = node.args[1]
    places = [place for place, index in enumerate(indices) if index is not None]
    base = shape_of(tensor_inputs(node)[0])
    inputs = tensor_inputs(node)
    values = shape_of(inputs[-1])
    accumulates = bool(node.args[3]) if len(node.args) > 3 else False
    tensors = [shape_of(indices[place]) for place in places]
    if places != list(range(len(places))) or any(
        indices[place].meta["val"].dtype == torch.bool for place in places
    ):
        return Rule()
    nothing = (None,) * len(tensors)
    factors = []
    for place in range(len(places), len(base)):
        own = place - len(base) + len(values)
        has = own >= 0 and values[own] == base[place]
        if base[place] > 1:
            factors.append(Factor((place, *nothing, own if has else None), (place,)))
    strategies: tuple[Strategy, ...] = ()
    if accumulates:
        strategies = (Strategy((PARTIAL,), (PARTIAL, *(REPLICATE for _ in tensors), PARTIAL)),)
        indexed = max((len(shape) for shape in tensors), default=0)
        rest = len(base) - len(places)
        if len(values) == indexed + rest and all(len(shape) == indexed for shape in tensors):
            for dim in range(indexed):
                if all(shape[dim] == values[dim] > 1 for shape in tensors):
                    shards = tuple(Shard(dim) for _ in tensors)
                    strategies += (Strategy((PARTIAL,), (PARTIAL, *shards, Shard(dim))),)
    return Rule(tuple(factors), strategies)
