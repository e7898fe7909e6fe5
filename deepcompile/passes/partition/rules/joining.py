"""Concatenation, padding, slices and splits along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import Shard
from deepcompile.passes.partition.rules.reductions import argument
from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    Strategy,
    linear_in,
    outputs_of,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


def _others(node: Node, dim: int) -> tuple[Factor, ...]:
    """Every other dimension, the same in all tensors of the node."""
    inputs, outputs = len(tensor_inputs(node)), len(outputs_of(node))
    shape = shape_of(tensor_inputs(node)[0])
    return tuple(
        Factor((place,) * inputs, (place,) * outputs)
        for place, extent in enumerate(shape)
        if place != dim and extent > 1
    )


@rule_for(aten.cat.default)
def _cat(node: Node) -> Rule:
    inputs = tensor_inputs(node)
    shape = shape_of(node)
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    if any(len(shape_of(source)) != len(shape) for source in inputs):
        return Rule()
    parts = tuple(shape_of(source)[dim] for source in inputs)
    joined = Strategy((Shard(dim, parts),), tuple(Shard(dim) for _ in inputs))
    linear = linear_in(node, range(len(inputs)))
    pieces: Any = ({}, {0: (Shard(dim, parts),)})
    return Rule(_others(node, dim), (*linear, joined), pieces=pieces)


@rule_for(aten.stack.default)
def _stack(node: Node) -> Rule:
    inputs = tensor_inputs(node)
    dim = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    factors = tuple(
        Factor((place,) * len(inputs), (place + (place >= dim),))
        for place, extent in enumerate(shape_of(inputs[0]))
        if extent > 1
    )
    return Rule(factors, linear_in(node, range(len(inputs))))


@rule_for(aten.split_with_sizes.default, aten.split.Tensor, aten.unbind.int, aten.chunk.default)
def _split(node: Node) -> Rule:
    shape = shape_of(tensor_inputs(node)[0])
    if node.target is aten.unbind.int:
        dim = int(argument(node, 1, "dim", 0)) % len(shape)
        return Rule(_dropping(node, dim), linear_in(node, (0,)))
    dim = int(argument(node, 2, "dim", 0)) % len(shape)
    parts = tuple(value.shape[dim] for value in outputs_of(node) if value is not None)
    apart = Strategy(tuple(Shard(dim) for _ in parts), (Shard(dim, parts),))
    pieces: Any = ({0: (Shard(dim, parts),)}, {})
    return Rule(
        _others(node, dim), (*linear_in(node, (0,)), apart), pieces=pieces, localise=_local_split
    )


def _local_split(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rank = len(shape_of(tensor_inputs(node)[0]))
    dim = int(argument(node, 2, "dim", 0)) % rank
    sizes = [emit.output_shape(i)[dim] for i in range(len(outputs_of(node)))]
    return emit.call(aten.split_with_sizes.default, args[0], sizes, dim)


def _dropping(node: Node, dim: int) -> tuple[Factor, ...]:
    """Dimensions that stay where `dim` goes."""
    outputs = len(outputs_of(node))
    return tuple(
        Factor((place,), (place - (place > dim),) * outputs)
        for place, extent in enumerate(shape_of(tensor_inputs(node)[0]))
        if place != dim and extent > 1
    )


@rule_for(aten.select.int)
def _select(node: Node) -> Rule:
    dim = int(node.args[1]) % len(shape_of(tensor_inputs(node)[0]))  # type: ignore[arg-type]
    return Rule(_dropping(node, dim), linear_in(node, (0,)))


def _bounds(node: Node, extent: int, first: int) -> tuple[int, int] | None:
    start, end = argument(node, first, "start"), argument(node, first + 1, "end")
    if argument(node, first + 2, "step", 1) != 1:
        return None
    start, end = 0 if start is None else start, extent if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    start, end = (bound + extent if bound < 0 else bound for bound in (start, end))
    return max(0, min(start, extent)), max(0, min(end, extent))


def _around(start: int, end: int, extent: int) -> tuple[int, ...]:
    return tuple(part for part in (start, end - start, extent - end) if part)


@rule_for(aten.slice.Tensor)
def _slice(node: Node) -> Rule:
    shape = shape_of(tensor_inputs(node)[0])
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    bounds = _bounds(node, shape[dim], 2)
    strategies: tuple[Strategy, ...] = linear_in(node, (0,))
    pieces: Any = ({}, {})
    if bounds is not None and bounds[1] > bounds[0]:
        parts = _around(*bounds, shape[dim])
        if len(parts) == 1:
            return Rule((*_others(node, dim), Factor((dim,), (dim,))), strategies, localise=_same)
        strategies += (Strategy((Shard(dim),), (Shard(dim, parts),)),)
        pieces = ({0: (Shard(dim, parts),)}, {})
    return Rule(_others(node, dim), strategies, pieces=pieces, localise=_local_slice)


def _same(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return emit.call(aten.alias.default, args[0])


def _local_slice(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    shape = shape_of(tensor_inputs(node)[0])
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    ranks = shape[dim] // emit.input_shape(0)[dim]
    if ranks == 1:
        return emit.call(node.target, *args, **kwargs)
    bounds = _bounds(node, shape[dim], 2)
    assert bounds is not None
    return emit.call(node.target, args[0], dim, bounds[0] // ranks, bounds[1] // ranks)


@rule_for(aten.slice_scatter.default)
def _slice_scatter(node: Node) -> Rule:
    shape = shape_of(node)
    dim = int(argument(node, 2, "dim", 0)) % len(shape)
    bounds = _bounds(node, shape[dim], 3)
    strategies: tuple[Strategy, ...] = linear_in(node, (0, 1))
    pieces: Any = ({}, {})
    if bounds is not None and bounds[1] > bounds[0]:
        parts = _around(*bounds, shape[dim])
        placed = Shard(dim, parts if len(parts) > 1 else ())
        strategies += (Strategy((placed,), (placed, Shard(dim))),)
        pieces = ({}, {0: (placed,)})
    return Rule(_others(node, dim), strategies, pieces=pieces, localise=_local_slice_scatter)


def _local_slice_scatter(
    emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    shape = shape_of(node)
    dim = int(argument(node, 2, "dim", 0)) % len(shape)
    ranks = shape[dim] // emit.output_shape(0)[dim]
    if ranks == 1:
        return emit.call(node.target, *args, **kwargs)
    bounds = _bounds(node, shape[dim], 3)
    assert bounds is not None
    return emit.call(node.target, args[0], args[1], dim, bounds[0] // ranks, bounds[1] // ranks)


@rule_for(aten.constant_pad_nd.default)
def _pad(node: Node) -> Rule:
    shape, result = shape_of(tensor_inputs(node)[0]), shape_of(node)
    padding: Sequence[int] = node.args[1]  # type: ignore[assignment]
    kept = [dim for dim in range(len(shape)) if _padding_of(padding, len(shape), dim) == (0, 0)]
    factors = tuple(Factor((dim,), (dim,)) for dim in kept if result[dim] > 1)
    zero = argument(node, 2, "value", 0) == 0
    return Rule(factors, linear_in(node, (0,)) if zero else ())


def _padding_of(padding: Sequence[int], rank: int, dim: int) -> tuple[int, int]:
    place = 2 * (rank - 1 - dim)
    return (padding[place], padding[place + 1]) if place < len(padding) else (0, 0)


@rule_for(aten.select_backward.default, aten.select_scatter.default)
def _select_backward(node: Node) -> Rule:
    if node.target is aten.select_scatter.default:
        dim = int(node.args[2]) % len(shape_of(node))  # type: ignore[arg-type]
        factors = tuple(
            Factor((place, place - (place > dim)), (place,))
            for place, extent in enumerate(shape_of(node))
            if place != dim and extent > 1
        )
        return Rule(factors, linear_in(node, (0, 1)))
    dim = int(node.args[2]) % len(shape_of(node))  # type: ignore[arg-type]
    factors = tuple(
        Factor((place - (place > dim),), (place,))
        for place, extent in enumerate(shape_of(node))
        if place != dim and extent > 1
    )
    return Rule(factors, linear_in(node, (0,)), localise=_local_backward)


def _local_backward(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return emit.call(node.target, args[0], list(emit.output_shape(0)), *args[2:], **kwargs)
