"""Random numbers: those of one device, at their place in the whole tensor, on every rank.

Ranks of tensor axes share one seed, which the first of them draws. Ranks of data axes work on
different batches: their seeds differ.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from deepcompile.capture import philox
from deepcompile.ir.placements import Shard
from deepcompile.passes.partition.strategy import Factor, Rule, outputs_of, rule_for, shape_of

aten = torch.ops.aten

_PARTS: dict[Any, Any] = {
    philox.philox_uniform: philox.philox_uniform_part,
    philox.philox_normal: philox.philox_normal_part,
}
_APART = -0x61C8864680B583EB
"""What seeds of neighbours on a data axis differ by: 2**64 / golden ratio, as int64."""


@rule_for(philox.philox_seed)
def _seed(node: Node) -> Rule:
    return Rule(localise=_one_seed, always=True)


def _one_seed(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    seed = emit.from_first(emit.call(node.target, *args, **kwargs))
    for axis in emit.data_axes:
        apart = emit.call(aten.mul.Scalar, emit.rank_of(axis), _APART)
        seed = emit.call(aten.add.Tensor, seed, apart)
    return seed


def drawn_rule(node: Node) -> Rule:
    """Of an operation that draws from torch's generator: what the first rank draws counts."""
    return Rule(localise=_drawn, always=True)


def _drawn(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = emit.call(node.target, *args, **kwargs)
    if not isinstance(node.meta["val"], tuple | list):
        return emit.from_first(result)
    return tuple(
        None if value is None else emit.from_first(emit.call(operator.getitem, result, position))
        for position, value in enumerate(outputs_of(node))
    )


@rule_for(philox.philox_uniform, philox.philox_normal)
def _draw(node: Node) -> Rule:
    shape = shape_of(node)
    factors = tuple(Factor((None,), (dim,)) for dim, extent in enumerate(shape) if extent > 1)
    return Rule(factors, localise=_local_draw)


def _local_draw(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Blocks of the whole tensor, one for each piece of dimensions that are sharded in pieces."""
    shape = shape_of(node)
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    pieces = {
        place.dim: place.pieces
        for place in emit.outputs[0]
        if isinstance(place, Shard) and place.pieces
    }
    local = emit.output_shape(0)
    ranks = [whole // here for whole, here in zip(shape, local, strict=True)]
    start = None
    for dim in range(len(shape)):
        if dim not in pieces:
            start = _further(
                emit, start, emit.start(emit.outputs[0], dim, local[dim]), strides[dim]
            )

    def block(dim: int, size: Sequence[int], here: Any) -> Any:
        """Of the dimensions before `dim`, the parts of `size` at `here` in the whole."""
        if dim == len(shape):
            return emit.call(
                _PARTS[node.target], args[0], args[1], here, list(size), strides, **kwargs
            )
        if dim not in pieces:
            return block(dim + 1, [*size, local[dim]], here)
        parts, begin = [], 0
        for piece in pieces[dim]:
            share = piece // ranks[dim]
            first = emit.start(emit.outputs[0], dim, share)
            place = _further(emit, here, first, strides[dim])
            place = emit.call(aten.add.Scalar, place, begin * strides[dim])
            parts.append(block(dim + 1, [*size, share], place))
            begin += piece
        return emit.call(aten.cat.default, parts, dim)

    return block(0, [], start)


def _further(emit: Any, start: Any, steps: Any, stride: int) -> Any:
    """A linear index after more steps of a stride; None for the first of all."""
    if steps is None:
        return start
    steps = emit.call(aten.mul.Scalar, steps, stride)
    return steps if start is None else emit.call(aten.add.Tensor, start, steps)
