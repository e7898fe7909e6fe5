"""What scalar rules read and give: operands of a computing dtype, numbers, the result's dtype."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch.fx import Node

from ...ir.index import Index
from ...ir.ops import REGISTER_OF
from .builder import Builder
from .refusals import CannotLower
from .shapes import size_index
from .views import Position, broadcast_position

_NARROW_INTS = ("i16", "i8", "u8")


def number(b: Builder, value: Any, register: str) -> int:
    """A Python number, or a symbolic one, as a value."""
    if isinstance(value, Node):
        if isinstance(value.meta["val"], torch.SymFloat):
            return b.cast(_symbolic_float(b, value), register)
        value = value.meta["val"]
    if isinstance(value, torch.SymInt):
        return b.cast(b.index(size_index(value)), register)
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        raise CannotLower("a symbolic float")
    if isinstance(value, complex):
        raise CannotLower("a complex number")
    if register in ("i32", "i64") and isinstance(value, float):
        if not math.isfinite(value):
            raise CannotLower("an infinite value in an integer op")
        value = int(value)
    return b.const(value, register)


_FLOAT_ARITHMETIC = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.pow: "pow",
    operator.neg: "neg",
    torch.sym_sqrt: "sqrt",
}


def _symbolic_float(b: Builder, value: Any) -> int:
    """A float computed from sizes, in f64 as Python computes it."""
    if not isinstance(value, Node):
        return b.const(float(value), "f64")
    known = value.meta["val"]
    if isinstance(known, (int, float, torch.SymInt)):
        return number(b, known, "f64")
    if value.target is torch.sym_float:
        return _symbolic_float(b, value.args[0])
    op = _FLOAT_ARITHMETIC.get(value.target)  # type: ignore[arg-type]
    if op is None:
        raise CannotLower("a symbolic float")
    return b.apply(op, *(_symbolic_float(b, argument) for argument in value.args))


def read(b: Builder, node: Node, position: Position) -> int:
    """An operand broadcast to `position`."""
    return b.value(node, broadcast_position(position, b.facts[node].shape))


def operand(b: Builder, value: Any, position: Position, register: str) -> int:
    """A tensor or number operand of a pointwise op, converted to `register`."""
    if isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor):
        return b.cast(read(b, value, position), register)
    return number(b, value, register)


def operand_of(b: Builder, value: Any, position: Position, dtype: str) -> int:
    """An operand converted to storage dtype `dtype`; narrow integers wrap, as -1 does in u8."""
    converted = operand(b, value, position, REGISTER_OF[dtype])
    return b.rounded(converted, dtype) if dtype in _NARROW_INTS else converted


def compute_dtype(arguments: list[Any], int_to_float: bool) -> torch.dtype:
    """The dtype in which ATen computes a pointwise op on these arguments."""
    values = [a.meta["val"] if isinstance(a, Node) else a for a in arguments]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    dtype = tensors[0].dtype if tensors else None
    if dtype is not None and all(t.dtype == dtype for t in tensors):
        scalars = [v for v in values if not isinstance(v, torch.Tensor)]
        if dtype.is_floating_point and not any(isinstance(s, complex) for s in scalars):
            return dtype
        if not scalars and not int_to_float:
            return dtype
    import torch._prims_common as common

    kind = (
        common.ELEMENTWISE_TYPE_PROMOTION_KIND.INT_TO_FLOAT
        if int_to_float
        else common.ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT
    )
    values = [1.0 if isinstance(v, torch.SymFloat) else v for v in values]
    plain = [v for v in values if isinstance(v, (torch.Tensor, int, float, bool, torch.SymInt))]
    _, result = common.elementwise_dtypes(*plain, type_promotion_kind=kind)
    return result


def result(b: Builder, node: Node, value: int) -> int:
    """Bring a computed value to the register of the node's dtype, wrapping narrow integers."""
    dtype = b.facts[node].dtype
    if dtype in _NARROW_INTS:
        return b.cast(value, dtype)
    return b.cast(value, REGISTER_OF[dtype])


def size_of(value: Any) -> Index:
    """An int, a SymInt or a node of one, as an `Index`."""
    return size_index(value.meta["val"] if isinstance(value, Node) else value)
