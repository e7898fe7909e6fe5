"""View operators as maps from an output position to the position read in the input."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from ...ir.index import ONE, ZERO, Index, contiguous_strides, floordiv, mod
from .shapes import Facts, args_of, argument, settled, size_index

aten = torch.ops.aten
Position = tuple[Index, ...]
Extents = Mapping[str, Index]


def _number(value: Any) -> Index:
    if isinstance(value, Node):
        value = value.meta["val"]
    return size_index(value)


def reshape_position(
    position: Position, shape: Position, source: Position, extents: Extents
) -> Position:
    """The position in a tensor of shape `source` of `position` in its row-major reshape `shape`."""
    if shape == source:
        return position
    result: list[Index] = []
    out, into = 0, 0
    while out < len(shape) or into < len(source):
        first_out, first_in = out, into
        size_out, size_in = ONE, ONE
        if out < len(shape):
            size_out, out = shape[out], out + 1
        if into < len(source):
            size_in, into = source[into], into + 1
        while size_out != size_in:
            constant_out, constant_in = size_out.constant(), size_in.constant()
            if constant_out is not None and constant_in is not None:
                grow_out = constant_out < constant_in
            else:
                grow_out = (out - first_out) <= (into - first_in)
            if (grow_out and out < len(shape)) or into >= len(source):
                if out >= len(shape):
                    break
                size_out, out = size_out * shape[out], out + 1
            else:
                size_in, into = size_in * source[into], into + 1
        if size_out != size_in:
            first_out, first_in, out, into = 0, 0, len(shape), len(source)
            result.clear()
        result.extend(
            _regroup(position[first_out:out], shape[first_out:out], source[first_in:into], extents)
        )
    return tuple(result)


def _regroup(position: Position, shape: Position, source: Position, extents: Extents) -> Position:
    if len(shape) == 1 and len(source) == 1:
        return position
    linear = ZERO
    for value, stride in zip(position, contiguous_strides(shape), strict=True):
        linear = linear + value * stride
    inner = contiguous_strides(source)
    result = []
    for dim, (size, stride) in enumerate(zip(source, inner, strict=True)):
        if size == ONE:
            result.append(ZERO)
            continue
        value = floordiv(linear, stride, extents)
        outermost = all(size == ONE for size in source[:dim])
        result.append(value if outermost else mod(value, size, extents))
    return tuple(result)


def _dim(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _slice(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    dim = _dim(argument(node, 1, "dim") or 0, len(source))
    start, step = argument(node, 2, "start") or 0, argument(node, 4, "step") or 1
    first = settled(start, args_of(node)[0].meta["val"].shape[dim])
    return (*position[:dim], first + position[dim] * _number(step), *position[dim + 1 :])


def _select(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    dim = _dim(args_of(node)[1], len(source))
    index = settled(args_of(node)[2], args_of(node)[0].meta["val"].shape[dim])
    return (*position[:dim], index, *position[dim:])


def _permute(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    result = [ZERO] * len(source)
    for out, dim in enumerate(args_of(node)[1]):
        result[_dim(dim, len(source))] = position[out]
    return tuple(result)


def _transpose(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    if len(source) < 2:
        return position
    a, b = (0, 1) if len(args_of(node)) < 3 else (_dim(d, len(source)) for d in args_of(node)[1:3])
    result = list(position)
    result[a], result[b] = result[b], result[a]
    return tuple(result)


def _expand(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    return broadcast_position(position, source)


def broadcast_position(position: Position, source: Position) -> Position:
    """The position read in an operand of shape `source` that is broadcast to `position`'s shape."""
    if not source:
        return ()
    tail = position[len(position) - len(source) :]
    return tuple(ZERO if size == ONE else at for at, size in zip(tail, source, strict=True))


def _reshape(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    shape = tuple(size_index(size) for size in node.meta["val"].shape)
    return reshape_position(position, shape, source, extents)


def _squeezed(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    shape = tuple(size_index(size) for size in node.meta["val"].shape)
    if shape == source:
        return position
    names = args_of(node)[1] if len(args_of(node)) > 1 else range(len(source))
    dims = {_dim(d, len(source)) for d in ([names] if isinstance(names, int) else names)}
    rest = iter(position)
    return tuple(
        ZERO if dim in dims and source[dim] == ONE else next(rest) for dim in range(len(source))
    )


def _unsqueeze(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    dim = _dim(args_of(node)[1], len(source) + 1)
    return (*position[:dim], *position[dim + 1 :])


def _same(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    return position


def _diagonal(node: Node, position: Position, source: Position, extents: Extents) -> Position:
    offset = args_of(node)[1] if len(args_of(node)) > 1 else 0
    first = _dim(args_of(node)[2] if len(args_of(node)) > 2 else 0, len(source))
    second = _dim(args_of(node)[3] if len(args_of(node)) > 3 else 1, len(source))
    rest = iter(position[:-1])
    along = position[-1]
    return tuple(
        along + max(-offset, 0)
        if dim == first
        else along + max(offset, 0)
        if dim == second
        else next(rest)
        for dim in range(len(source))
    )


ViewRule = Callable[[Node, Position, Position, Extents], Position]

VIEWS: dict[Any, ViewRule] = {
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.squeeze.default: _squeezed,
    aten.squeeze.dim: _squeezed,
    aten.squeeze.dims: _squeezed,
    aten.unsqueeze.default: _unsqueeze,
    aten.diagonal.default: _diagonal,
    aten.alias.default: _same,
    aten.detach.default: _same,
    torch.ops.prims.view_of.default: _same,
}

_SPLITS = (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
)


def is_view(node: Node) -> bool:
    """Whether the node only re-reads its input's memory at other positions."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return args_of(node)[0].target in _SPLITS
    return node.target in VIEWS


def is_split(node: Node) -> bool:
    """Whether the node's results, taken by getitem, are views of its input."""
    return node.op == "call_function" and node.target in _SPLITS


def view_source(node: Node) -> Node:
    """The tensor that a view reads."""
    return args_of(args_of(node)[0])[0] if node.target is operator.getitem else args_of(node)[0]


def view_position(node: Node, position: Position, facts: Facts, extents: Extents) -> Position:
    """Where `view_source(node)` is read for `position` of the view."""
    source = facts[view_source(node)].shape
    if node.target is operator.getitem:
        return _split_position(node, position, source)
    return VIEWS[node.target](node, position, source, extents)


def _split_position(node: Node, position: Position, source: Position) -> Position:
    split, number = args_of(node)
    last = args_of(split)[2] if len(args_of(split)) > 2 else split.kwargs.get("dim", 0)
    if split.target is aten.unbind.int:
        dim = _dim(args_of(split)[1] if len(args_of(split)) > 1 else 0, len(source))
        return (*position[:dim], Index.of(number), *position[dim:])
    dim = _dim(last, len(source))
    if split.target is aten.split.Tensor:
        start = _number(args_of(split)[1]) * number
    else:
        start = ZERO
        for size in args_of(split)[1][:number]:
            start = start + _number(size)
    return (*position[:dim], start + position[dim], *position[dim + 1 :])
