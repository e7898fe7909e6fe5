"""Scalar rules of arithmetic, choices and bounds that are more than one row of the op table."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from ...ir.ops import REGISTER_OF
from .builder import Builder
from .operands import compute_dtype, number, operand, operand_of, read, result
from .refusals import CannotLower
from .rules import rule
from .shapes import args_of, argument, dtype_name
from .views import Position

aten = torch.ops.aten


def _binary(b: Builder, node: Node, position: Position, op: str, swap: bool = False) -> int:
    left, right = args_of(node)[:2]
    register = REGISTER_OF[dtype_name(compute_dtype([left, right], False))]
    x, y = operand(b, left, position, register), operand(b, right, position, register)
    alpha = argument(node, 2, "alpha", 1)
    if swap:
        x, y = y, x
        if alpha != 1:
            y = b.apply("mul", y, number(b, alpha, register))
    elif alpha != 1:
        y = b.apply("mul", y, number(b, alpha, register))
    if register == "b1":
        return result(b, node, b.apply("logical_or", x, y))
    return result(b, node, b.apply(op, x, y))


@rule(aten.add.Tensor, aten.add.Scalar)
def _add(b: Builder, node: Node, position: Position) -> int:
    return _binary(b, node, position, "add")


@rule(aten.sub.Tensor, aten.sub.Scalar)
def _sub(b: Builder, node: Node, position: Position) -> int:
    return _binary(b, node, position, "sub")


@rule(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(b: Builder, node: Node, position: Position) -> int:
    return _binary(b, node, position, "sub", swap=True)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(b: Builder, node: Node, position: Position) -> int:
    register = REGISTER_OF[dtype_name(compute_dtype(list(args_of(node)[:2]), False))]
    x, y = (operand(b, argument, position, register) for argument in args_of(node)[:2])
    op = "logical_and" if register == "b1" else "mul"
    return result(b, node, b.apply(op, x, y))


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div_mode(b: Builder, node: Node, position: Position) -> int:
    mode = argument(node, 2, "rounding_mode", None)
    dtype = dtype_name(compute_dtype(list(args_of(node)[:2]), mode is None))
    register = REGISTER_OF[dtype]
    x, y = (operand(b, argument, position, register) for argument in args_of(node)[:2])
    if mode is None:
        return result(b, node, b.apply("div", x, y))
    x, y = b.rounded(x, dtype), b.rounded(y, dtype)
    if mode == "floor":
        return result(b, node, b.apply("floordiv", x, y))
    if register in ("f32", "f64"):
        return result(b, node, b.apply("trunc", b.apply("div", x, y)))
    return result(b, node, b.apply("trunc_div", x, y))


@rule(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _pow(b: Builder, node: Node, position: Position) -> int:
    base, exponent = args_of(node)[:2]
    dtype = compute_dtype([base, exponent], False)
    register = REGISTER_OF[dtype_name(dtype)]
    if not isinstance(exponent, Node) and register in ("f32", "f64"):
        x = operand(b, base, position, register)
        if exponent == 0:
            return b.const(1.0, register)
        if exponent == 1:
            return x
        if exponent == 2:
            return b.apply("mul", x, x)
        if exponent == 3:
            return b.apply("mul", b.apply("mul", x, x), x)
        if exponent == 0.5:
            return b.apply("sqrt", x)
        if exponent == -0.5:
            return b.apply("rsqrt", x)
        if exponent == -1:
            return b.apply("recip", x)
    x, y = operand(b, base, position, register), operand(b, exponent, position, register)
    if register not in ("f32", "f64"):
        if isinstance(exponent, int) and 0 < exponent <= 4 and register != "b1":
            power = x
            for _ in range(exponent - 1):
                power = b.apply("mul", power, x)
            return result(b, node, power)
        raise CannotLower("an integer power")
    return result(b, node, b.apply("pow", x, y))


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(b: Builder, node: Node, position: Position) -> int:
    dtype = b.facts[node].dtype
    condition = b.cast(read(b, args_of(node)[0], position), "b1")
    x, y = (operand_of(b, argument, position, dtype) for argument in args_of(node)[1:3])
    return b.apply("where", condition, x, y, dtype=REGISTER_OF[dtype])


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(b: Builder, node: Node, position: Position) -> int:
    dtype = b.facts[node].dtype
    x, mask, fill = args_of(node)[:3]
    condition = b.cast(read(b, mask, position), "b1")
    kept, other = (operand_of(b, argument, position, dtype) for argument in (x, fill))
    return b.apply("where", condition, other, kept, dtype=REGISTER_OF[dtype])


@rule(
    aten.clamp.default,
    aten.clamp.Tensor,
    aten.clamp_min.default,
    aten.clamp_min.Tensor,
    aten.clamp_max.default,
    aten.clamp_max.Tensor,
    aten.hardtanh.default,
)
def _clamp(b: Builder, node: Node, position: Position) -> int:
    dtype = b.facts[node].dtype
    bounds = [*args_of(node)[1:3], None, None][:2]
    if node.target in (aten.clamp_max.default, aten.clamp_max.Tensor):
        bounds = [None, bounds[0] if args_of(node)[1:] else node.kwargs.get("max")]
    low = bounds[0] if bounds[0] is not None else node.kwargs.get("min", node.kwargs.get("min_val"))
    high = bounds[1]
    if high is None:
        high = node.kwargs.get("max", node.kwargs.get("max_val"))
    if node.target is aten.hardtanh.default:
        low, high = -1 if low is None else low, 1 if high is None else high
    value = operand_of(b, args_of(node)[0], position, dtype)
    if low is not None:
        value = b.apply("maximum", value, operand_of(b, low, position, dtype))
    if high is not None:
        value = b.apply("minimum", value, operand_of(b, high, position, dtype))
    return value


@rule(aten.angle.default)
def _angle(b: Builder, node: Node, position: Position) -> int:
    """Of real numbers: 0, pi below zero (not of -0.0), NaN of NaN."""
    register = REGISTER_OF[b.facts[node].dtype]
    if b.facts[node].dtype not in ("f32", "f64", "bf16", "f16"):
        raise CannotLower("an angle that is no float")
    x = operand(b, args_of(node)[0], position, register)
    zero = b.const(0.0, register)
    below = b.apply("lt", x, zero, dtype="b1")
    angle = b.apply("where", below, b.const(math.pi, register), zero, dtype=register)
    return b.apply("where", b.apply("isnan", x, dtype="b1"), x, angle, dtype=register)


@rule(aten.ldexp.Tensor)
def _ldexp(b: Builder, node: Node, position: Position) -> int:
    """ATen's own formula: x * 2**y, so that it overflows where eager does."""
    register = REGISTER_OF[b.facts[node].dtype]
    x, power = (operand(b, value, position, register) for value in args_of(node)[:2])
    return b.apply("mul", x, b.apply("exp2", power))


@rule(aten.addcmul.default, aten.addcdiv.default)
def _addc(b: Builder, node: Node, position: Position) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    base, x, y = (operand(b, a, position, register) for a in args_of(node)[:3])
    scale = argument(node, 3, "value", 1)
    if node.target is aten.addcdiv.default and register not in ("f32", "f64"):
        raise CannotLower("addcdiv of integers")
    if scale != 1:
        x = b.apply("mul", number(b, scale, register), x)
    inner = b.apply("mul" if node.target is aten.addcmul.default else "div", x, y)
    return result(b, node, b.apply("add", base, inner))


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(b: Builder, node: Node, position: Position) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    start, end, weight = (operand(b, a, position, register) for a in args_of(node)[:3])
    span = b.apply("sub", end, start)
    near = b.apply("add", start, b.apply("mul", weight, span))
    one = b.const(1.0, register)
    far = b.apply("sub", end, b.apply("mul", span, b.apply("sub", one, weight)))
    small = b.apply("lt", b.apply("abs", weight), b.const(0.5, register), dtype="b1")
    return b.apply("where", small, near, far, dtype=register)
