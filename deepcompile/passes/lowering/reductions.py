"""Reductions of ATen as monoids over dims of one input, with what comes before and after."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ...ir.index import ONE, ZERO, Index, contiguous_strides, product
from ...ir.ops import REGISTER_OF
from .builder import Builder
from .refusals import CannotFuse, CannotLower
from .shapes import Facts, args_of, dtype_name, size_index
from .views import Position

aten = torch.ops.aten
prims = torch.ops.prims


@dataclass(frozen=True)
class Reduction:
    """`finish(monoid over dims of source)`; `kind` names a monoid of the kernel IR."""

    source: Node
    dims: tuple[int, ...]
    keepdim: bool
    kind: str
    finish: Callable[[Builder, Node, Reduction, int, frozenset[str]], int]

    def kept(self, position: Position) -> Position:
        """The part of an input position that an output position fixes."""
        return tuple(at for dim, at in enumerate(position) if dim not in self.dims)

    def count(self, facts: Facts) -> Index:
        """How many elements one result is made of."""
        shape = facts[self.source].shape
        return product([shape[dim] for dim in self.dims])

    def is_single(self, facts: Facts) -> bool:
        """Whether each result is made of one element, so that nothing is reduced."""
        shape = facts[self.source].shape
        return all(shape[dim] == ONE for dim in self.dims)

    def input_position(self, position: Position) -> Position:
        """The input position of an output position, where `is_single`."""
        if self.keepdim:
            return position
        rest = iter(position)
        rank = len(position) + len(self.dims)
        return tuple(ZERO if dim in self.dims else next(rest) for dim in range(rank))

    def output_position(self, position: Position) -> Position:
        """The output position that an input position contributes to."""
        if self.keepdim:
            return tuple(ZERO if dim in self.dims else at for dim, at in enumerate(position))
        return self.kept(position)


def _argument(node: Node, number: int, name: str, default: Any) -> Any:
    if len(args_of(node)) > number:
        return args_of(node)[number]
    return node.kwargs.get(name, default)


def _dims(node: Node, source: Node, value: Any) -> tuple[int, ...]:
    rank = source.meta["val"].dim()
    if not rank:
        return ()
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return tuple(range(rank))
    values = [value] if isinstance(value, int) else value
    return tuple(sorted({dim + rank if dim < 0 else dim for dim in values}))


def _plain(b: Builder, node: Node, r: Reduction, value: int, covered: frozenset[str]) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    if r.kind in ("any", "all"):
        value = b.cast(value, "b1")
        return b.cast(b.reduce(r.kind, "", value, "b1", covered), b.facts[node].dtype)
    return b.reduce(r.kind, "", b.cast(value, register), register, covered)


def _mean(b: Builder, node: Node, r: Reduction, value: int, covered: frozenset[str]) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    total = b.reduce("sum", "", b.cast(value, register), register, covered)
    count = b.cast(b.index(r.count(b.facts)), register)
    return b.apply("div", total, count)


def _argument_of(b: Builder, node: Node, r: Reduction, value: int, covered: frozenset[str]) -> int:
    if not covered:
        return b.const(0, "i64")
    position = b.reductions[node]
    shape = b.facts[r.source].shape
    reduced = [dim for dim in r.dims if shape[dim] != ONE]
    linear = ZERO
    strides = contiguous_strides(tuple(shape[dim] for dim in reduced))
    for dim, stride in zip(reduced, strides, strict=True):
        linear = linear + position[dim] * stride
    expected = ZERO
    extents = tuple(extent for _, extent in b.reduced)
    for (name, _), stride in zip(b.reduced, contiguous_strides(extents), strict=True):
        expected = expected + Index.of(name) * stride
    if linear != expected:
        raise CannotFuse("the rows of this kernel are in another order than the argument's index")
    if b.dtype(value) == "b1":
        value = b.cast(value, "i32")
    return b.reduce(r.kind, "index", value, "i64", covered)


def _welford(part: str) -> Callable[..., int]:
    def finish(b: Builder, node: Node, r: Reduction, value: int, covered: frozenset[str]) -> int:
        register = REGISTER_OF[b.facts[node].dtype]
        value = b.cast(value, register)
        if part == "mean":
            return b.reduce("welford", "mean", value, register, covered)
        squares = b.reduce("welford", "m2", value, register, covered)
        root = args_of(node)[0] if node.target is operator.getitem else node
        correction = root.kwargs.get("correction", 1)
        if isinstance(args_of(root)[-1], bool) and root.target is aten.var.dim:
            correction = 1 if args_of(root)[2] else 0
        if correction is None:
            correction = 1
        count = b.cast(b.index(r.count(b.facts)), register)
        if correction != 0:
            free = b.apply("sub", count, _correction(b, correction, register))
            count = b.apply("maximum", free, b.const(0.0, register))
        return b.apply("div", squares, count)

    return finish


def _correction(b: Builder, correction: Any, register: str) -> int:
    if not isinstance(correction, Node):
        return b.const(correction, register)
    if correction.target is torch.sym_float:
        correction = correction.args[0]
    value = correction.meta["val"] if isinstance(correction, Node) else correction
    if not isinstance(value, (int, torch.SymInt)):
        raise CannotLower("a symbolic float")
    return b.cast(b.index(size_index(value)), register)


def _logsumexp(b: Builder, node: Node, r: Reduction, value: int, covered: frozenset[str]) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    value = b.cast(value, register)
    top = b.reduce("lse", "max", value, register, covered)
    total = b.reduce("lse", "sum", value, register, covered)
    infinite = b.apply("isinf", top, dtype="b1")
    shift = b.apply("where", infinite, b.const(0.0, register), top, dtype=register)
    # An infinite maximum is the answer itself: the sum was taken relative to it.
    found = b.apply("add", b.apply("log", total), shift)
    return b.apply("where", infinite, top, found, dtype=register)


_BY_DIMS: dict[Any, tuple[str, Callable[..., int]]] = {
    aten.sum.dim_IntList: ("sum", _plain),
    aten.mean.dim: ("sum", _mean),
    aten.amax.default: ("max", _plain),
    aten.amin.default: ("min", _plain),
    aten.any.dim: ("any", _plain),
    aten.any.dims: ("any", _plain),
    aten.all.dim: ("all", _plain),
    aten.all.dims: ("all", _plain),
    aten.prod.dim_int: ("prod", _plain),
    aten.argmax.default: ("argmax", _argument_of),
    aten.argmin.default: ("argmin", _argument_of),
    aten.logsumexp.default: ("lse", _logsumexp),
    aten.var.correction: ("welford", _welford("var")),
    aten.var.dim: ("welford", _welford("var")),
}
_WHOLE: dict[Any, tuple[str, Callable[..., int]]] = {
    aten.sum.default: ("sum", _plain),
    aten.mean.default: ("sum", _mean),
    aten.max.default: ("max", _plain),
    aten.min.default: ("min", _plain),
    aten.any.default: ("any", _plain),
    aten.all.default: ("all", _plain),
    aten.prod.default: ("prod", _plain),
}
_TUPLES: dict[Any, tuple[tuple[str, Callable[..., int]], ...]] = {
    aten.var_mean.correction: (("welford", _welford("var")), ("welford", _welford("mean"))),
    aten.max.dim: (("max", _plain), ("argmax", _argument_of)),
    aten.min.dim: (("min", _plain), ("argmin", _argument_of)),
}


def is_tuple_reduction(node: Node) -> bool:
    """Whether the node is a reduction whose results are taken by getitem."""
    return node.op == "call_function" and node.target in _TUPLES


def reduction_of(node: Node) -> Reduction | None:
    """What a node reduces, or None when it is no reduction that kernels know."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        root, number = args_of(node)
        if not isinstance(root, Node) or root.target not in _TUPLES:
            return None
        kind, finish = _TUPLES[root.target][number]
        dims = _dims(root, args_of(root)[0], _argument(root, 1, "dim", None))
        keepdim = _argument(root, 2, "keepdim", False)
        return Reduction(args_of(root)[0], dims, bool(keepdim), kind, finish)
    source = args_of(node)[0] if args_of(node) else None
    if not isinstance(source, Node):
        return None
    if node.target in _WHOLE:
        kind, finish = _WHOLE[node.target]
        return Reduction(source, _dims(node, source, None), False, kind, finish)
    if node.target in _BY_DIMS:
        kind, finish = _BY_DIMS[node.target]
        place = 3 if node.target is aten.var.dim else 2
        keepdim = _argument(node, place, "keepdim", False)
        dims = _dims(node, source, _argument(node, 1, "dim", None))
        return Reduction(source, dims, bool(keepdim), kind, finish)
    return None


def lower_reduction(b: Builder, node: Node, reduction: Reduction, position: Position) -> int:
    """The reduction's value at an output position.

    Raises:
        CannotFuse: when the kernel does not run over it, or asks for it at other rows.
    """
    if reduction.is_single(b.facts):
        value = b.value(reduction.source, reduction.input_position(position))
        return reduction.finish(b, node, reduction, value, frozenset())
    inner = b.reductions.get(node)
    if inner is None:
        raise CannotFuse(f"{node.name} is reduced in another kernel")
    if reduction.output_position(inner) != position:
        raise CannotFuse(f"{node.name} is read at another row than the one being reduced")
    covered = frozenset[str]().union(*(inner[dim].names() for dim in reduction.dims))
    covered &= b.extents.keys()
    value = b.value(reduction.source, inner)
    source_dtype = b.facts[reduction.source].dtype
    if reduction.kind in ("argmax", "argmin"):
        value = b.rounded(value, source_dtype)
    return reduction.finish(b, node, reduction, value, covered)


def check_reduction(node: Node, reduction: Reduction, facts: Facts) -> None:
    """Raise CannotLower when kernels cannot have this reduction at all."""
    dtype_name(node.meta["val"].dtype)
    shape = facts[reduction.source].shape
    if reduction.kind in ("max", "min", "argmax", "argmin") and ZERO in shape:
        raise CannotLower("a reduction without identity over nothing")
