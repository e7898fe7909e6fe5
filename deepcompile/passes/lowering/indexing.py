"""Scalar rules of operators that read or place their operands at computed positions."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...ir.index import ONE, ZERO, Index, floordiv, mod
from ...ir.ops import REGISTER_OF
from .builder import Builder
from .operands import number, size_of
from .refusals import CannotLower
from .rules import rule
from .shapes import args_of, argument, settled
from .views import Position, broadcast_position

aten = torch.ops.aten


def _dim(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _replace(position: Position, dim: int, value: Index) -> Position:
    return (*position[:dim], value, *position[dim + 1 :])


def _choose(b: Builder, keep: int, inside: Any, outside: Any) -> int:
    """`inside()` where `keep` else `outside()`, each computed only where it is chosen."""
    known = b.literal(keep)
    if known is True:
        return inside()
    other = outside()
    if known is False:
        return other
    return b.masked(keep, inside, other)


@rule(aten.cat.default)
def _cat(b: Builder, node: Node, position: Position) -> int:
    rank = len(position)
    dim = _dim(argument(node, 1, "dim", 0), rank)
    register = REGISTER_OF[b.facts[node].dtype]
    parts: list[tuple[Index, Index, Node]] = []
    start = ZERO
    for part in args_of(node)[0]:
        shape = b.facts[part].shape
        if len(shape) != rank:
            continue
        if shape[dim] == ZERO:
            continue
        parts.append((start, start + shape[dim], part))
        start = start + shape[dim]

    def choose(rest: list[tuple[Index, Index, Node]]) -> int:
        low, high, part = rest[0]

        def inside() -> int:
            at = _replace(position, dim, position[dim] - low)
            return b.cast(b.value(part, at), register)

        if len(rest) == 1:
            if low == ZERO:
                return inside()
            return b.masked(b.in_range(position[dim], low, high), inside)
        return _choose(b, b.in_range(position[dim], low, high), inside, lambda: choose(rest[1:]))

    if not parts:
        return b.const(0, register)
    return choose(parts)


@rule(aten.constant_pad_nd.default)
def _pad(b: Builder, node: Node, position: Position) -> int:
    source, pads = args_of(node)[0], args_of(node)[1]
    fill = argument(node, 2, "value", 0)
    register = REGISTER_OF[b.facts[node].dtype]
    shape = b.facts[source].shape
    at, keep = list(position), b.const(True, "b1")
    for pair in range(len(pads) // 2):
        dim = len(shape) - 1 - pair
        before = size_of(pads[2 * pair])
        at[dim] = position[dim] - before
        inside = b.in_range(at[dim], ZERO, shape[dim])
        known = b.literal(inside)
        if known is True:
            continue
        keep = inside if b.literal(keep) is True else b.apply("logical_and", keep, inside)
    return _choose(b, keep, lambda: b.value(source, tuple(at)), lambda: number(b, fill, register))


_FAR = Index.of(1 << 40)


@rule(aten.tril.default, aten.triu.default)
def _triangle(b: Builder, node: Node, position: Position) -> int:
    diagonal = size_of(argument(node, 1, "diagonal", 0))
    across = position[-1] - position[-2]
    if node.target is aten.tril.default:
        keep = b.in_range(across, -_FAR, diagonal + 1)
    else:
        keep = b.in_range(across, diagonal, _FAR)
    value = b.value(args_of(node)[0], position)
    zero = b.const(0, b.dtype(value))
    return b.apply("where", keep, value, zero, dtype=b.dtype(value))


@rule(aten.slice_scatter.default)
def _slice_scatter(b: Builder, node: Node, position: Position) -> int:
    base, source = args_of(node)[:2]
    dim = _dim(argument(node, 2, "dim", 0), len(position))
    step = argument(node, 5, "step", 1)
    if not isinstance(step, int):
        raise CannotLower("a symbolic slice step")
    start = settled(argument(node, 3, "start", None) or 0, base.meta["val"].shape[dim])
    offset = position[dim] - start
    count = b.facts[source].shape[dim]
    keep = b.in_range(offset, ZERO, count * step)
    at = offset
    if step != 1:
        phase = b.index(mod(offset, Index.of(step), b.extents))
        on = b.apply("eq", phase, b.const(0, "i64"), dtype="b1")
        keep = b.apply("logical_and", keep, on)
        at = floordiv(offset, Index.of(step), b.extents)
    register = REGISTER_OF[b.facts[node].dtype]
    return _choose(
        b,
        keep,
        lambda: b.cast(b.value(source, _replace(position, dim, at)), register),
        lambda: b.value(base, position),
    )


@rule(aten.select_scatter.default)
def _select_scatter(b: Builder, node: Node, position: Position) -> int:
    base, source = args_of(node)[:2]
    dim = _dim(args_of(node)[2], len(position))
    index = settled(args_of(node)[3], base.meta["val"].shape[dim])
    keep = b.in_range(position[dim] - index, ZERO, ONE)
    register = REGISTER_OF[b.facts[node].dtype]
    at = (*position[:dim], *position[dim + 1 :])
    return _choose(
        b,
        keep,
        lambda: b.cast(b.value(source, at), register),
        lambda: b.value(base, position),
    )


@rule(aten.diagonal_scatter.default)
def _diagonal_scatter(b: Builder, node: Node, position: Position) -> int:
    base, source = args_of(node)[:2]
    offset = argument(node, 2, "offset", 0)
    first = _dim(argument(node, 3, "dim1", 0), len(position))
    second = _dim(argument(node, 4, "dim2", 1), len(position))
    if not isinstance(offset, int):
        raise CannotLower("a diagonal at a symbolic distance")
    keep = b.in_range(position[second] - position[first] - offset, ZERO, ONE)
    along = position[first] - max(-offset, 0)
    rest = tuple(at for dim, at in enumerate(position) if dim not in (first, second))
    register = REGISTER_OF[b.facts[node].dtype]
    return _choose(
        b,
        keep,
        lambda: b.cast(b.value(source, (*rest, along)), register),
        lambda: b.value(base, position),
    )


@rule(aten.flip.default)
def _flip(b: Builder, node: Node, position: Position) -> int:
    shape = b.facts[node].shape
    at = list(position)
    for dim in args_of(node)[1]:
        dim = _dim(dim, len(shape))
        at[dim] = shape[dim] - 1 - position[dim]
    return b.value(args_of(node)[0], tuple(at))


@rule(aten.roll.default)
def _roll(b: Builder, node: Node, position: Position) -> int:
    shifts = args_of(node)[1] if isinstance(args_of(node)[1], (list, tuple)) else [args_of(node)[1]]
    dims = args_of(node)[2] if len(args_of(node)) > 2 else []
    if len(dims) != len(shifts):
        raise CannotLower("roll of a flattened tensor")
    shape, at = b.facts[node].shape, list(position)
    for shift, dim in zip(shifts, dims, strict=True):
        dim = _dim(dim, len(shape))
        constant = shape[dim].constant()
        if not isinstance(shift, int) or constant is None:
            raise CannotLower("roll by a symbolic distance")
        if constant:
            at[dim] = mod(at[dim] - shift % constant + constant, shape[dim], b.extents)
    return b.value(args_of(node)[0], tuple(at))


@rule(aten.repeat.default)
def _repeat(b: Builder, node: Node, position: Position) -> int:
    shape = b.facts[args_of(node)[0]].shape
    tail = position[len(position) - len(shape) :]
    at = tuple(mod(p, size, b.extents) for p, size in zip(tail, shape, strict=True))
    return b.value(args_of(node)[0], at)


def _checked(b: Builder, index: int, size: Index, wrap: bool) -> tuple[Index, int]:
    """An i64 index into a dim of `size` as an address, and the b1 that it is in range."""
    index = b.cast(index, "i64")
    if wrap:
        extent = b.index(size)
        negative = b.apply("lt", index, b.const(0, "i64"), dtype="b1")
        index = b.apply("where", negative, b.apply("add", index, extent), index, dtype="i64")
    address = b.as_index(index)
    return address, b.check(b.in_range(address, ZERO, size))


def _guarded(b: Builder, node: Node, source: Node, at: Position, inside: int) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    if b.literal(inside) is True:
        return b.value(source, at)
    return b.masked(inside, lambda: b.value(source, at), b.const(0, register))


@rule(aten.gather.default)
def _gather(b: Builder, node: Node, position: Position) -> int:
    source, dim, indices = args_of(node)[:3]
    if not b.facts[source].shape:
        return b.value(source, ())
    if len(b.facts[source].shape) != len(position):
        # Torch lets an index without elements have any rank.
        raise CannotLower("gather with an index of another rank")
    dim = _dim(dim, len(position))
    at, inside = _checked(b, b.value(indices, position), b.facts[source].shape[dim], False)
    return _guarded(b, node, source, _replace(position, dim, at), inside)


@rule(aten.index_select.default)
def _index_select(b: Builder, node: Node, position: Position) -> int:
    source, dim, indices = args_of(node)[:3]
    shape = b.facts[source].shape
    if not shape:
        return b.value(source, ())
    dim = _dim(dim, len(position))
    where = (position[dim],) if b.facts[indices].shape else ()
    at, inside = _checked(b, b.value(indices, where), shape[dim], False)
    return _guarded(b, node, source, _replace(position, dim, at), inside)


@rule(aten.embedding.default)
def _embedding(b: Builder, node: Node, position: Position) -> int:
    table, indices = args_of(node)[:2]
    rows = b.facts[table].shape[0]
    at, inside = _checked(b, b.value(indices, position[:-1]), rows, False)
    return _guarded(b, node, table, (at, position[-1]), inside)


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(b: Builder, node: Node, position: Position) -> int:
    source, indices = args_of(node)[:2]
    shape = b.facts[source].shape
    given = [dim for dim, index in enumerate(indices) if index is not None]
    if any(b.facts[indices[dim]].dtype in ("b1", "u8") for dim in given):
        raise CannotLower("an index by mask")
    ranks = [b.facts[indices[dim]].shape for dim in given]
    rank = max(len(r) for r in ranks)
    adjacent = given == list(range(given[0], given[-1] + 1))
    first = given[0] if adjacent else 0
    at_index = position[first : first + rank]
    rest = iter((*position[:first], *position[first + rank :]))
    at: list[Index] = []
    keep = b.const(True, "b1")
    for dim in range(len(shape)):
        if dim >= len(indices) or indices[dim] is None:
            at.append(next(rest))
            continue
        value = b.value(indices[dim], broadcast_position(at_index, b.facts[indices[dim]].shape))
        where, inside = _checked(b, value, shape[dim], True)
        at.append(where)
        if b.literal(inside) is not True:
            keep = inside if b.literal(keep) is True else b.apply("logical_and", keep, inside)
    return _guarded(b, node, source, tuple(at), keep)
