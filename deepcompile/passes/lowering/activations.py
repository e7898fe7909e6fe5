"""Scalar rules of activations and their gradients, one formula each."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from ...ir.ops import REGISTER_OF
from .builder import Builder
from .operands import number, operand
from .rules import rule
from .shapes import args_of, argument
from .views import Position

aten = torch.ops.aten


def _float_operands(
    b: Builder, node: Node, position: Position, count: int
) -> tuple[str, list[int]]:
    register = REGISTER_OF[b.facts[node].dtype]
    return register, [operand(b, a, position, register) for a in args_of(node)[:count]]


def _approximate(node: Node, place: int) -> str:
    return argument(node, place, "approximate", "none")


_ROOT_TWO_OVER_PI = math.sqrt(2 / math.pi)


@rule(aten.gelu.default)
def _gelu(b: Builder, node: Node, position: Position) -> int:
    register, (x,) = _float_operands(b, node, position, 1)
    half, one = b.const(0.5, register), b.const(1.0, register)
    if _approximate(node, 1) == "tanh":
        cube = b.apply("mul", b.apply("mul", x, x), x)
        inner = b.apply("add", x, b.apply("mul", b.const(0.044715, register), cube))
        curve = b.apply("tanh", b.apply("mul", b.const(_ROOT_TWO_OVER_PI, register), inner))
    else:
        curve = b.apply("erf", b.apply("mul", x, b.const(math.sqrt(0.5), register)))
    return b.apply("mul", b.apply("mul", half, x), b.apply("add", one, curve))


@rule(aten.gelu_backward.default)
def _gelu_backward(b: Builder, node: Node, position: Position) -> int:
    register, (gradient, x) = _float_operands(b, node, position, 2)
    half, one = b.const(0.5, register), b.const(1.0, register)
    square = b.apply("mul", x, x)
    if _approximate(node, 2) == "tanh":
        scale = b.const(_ROOT_TWO_OVER_PI, register)
        cubic = b.const(0.044715, register)
        inner = b.apply("add", x, b.apply("mul", cubic, b.apply("mul", square, x)))
        curve = b.apply("tanh", b.apply("mul", scale, inner))
        left = b.apply("mul", half, b.apply("add", one, curve))
        slope = b.apply("sub", one, b.apply("mul", curve, curve))
        triple = b.apply("mul", b.const(3 * 0.044715, register), square)
        inside = b.apply("mul", scale, b.apply("add", one, triple))
        right = b.apply("mul", b.apply("mul", b.apply("mul", half, x), slope), inside)
    else:
        curve = b.apply("erf", b.apply("mul", x, b.const(math.sqrt(0.5), register)))
        left = b.apply("mul", half, b.apply("add", one, curve))
        density = b.apply("exp", b.apply("mul", square, b.const(-0.5, register)))
        density = b.apply("mul", density, b.const(1 / math.sqrt(2 * math.pi), register))
        right = b.apply("mul", x, density)
    return b.apply("mul", gradient, b.apply("add", left, right))


@rule(aten.silu.default)
def _silu(b: Builder, node: Node, position: Position) -> int:
    _, (x,) = _float_operands(b, node, position, 1)
    return b.apply("mul", x, b.apply("sigmoid", x))


@rule(aten.silu_backward.default)
def _silu_backward(b: Builder, node: Node, position: Position) -> int:
    register, (gradient, x) = _float_operands(b, node, position, 2)
    one, curve = b.const(1.0, register), b.apply("sigmoid", x)
    rest = b.apply("mul", x, b.apply("sub", one, curve))
    return b.apply("mul", gradient, b.apply("mul", curve, b.apply("add", one, rest)))


@rule(aten.sigmoid_backward.default)
def _sigmoid_backward(b: Builder, node: Node, position: Position) -> int:
    register, (gradient, y) = _float_operands(b, node, position, 2)
    slope = b.apply("mul", b.apply("sub", b.const(1.0, register), y), y)
    return b.apply("mul", gradient, slope)


@rule(aten.tanh_backward.default)
def _tanh_backward(b: Builder, node: Node, position: Position) -> int:
    register, (gradient, y) = _float_operands(b, node, position, 2)
    slope = b.apply("sub", b.const(1.0, register), b.apply("mul", y, y))
    return b.apply("mul", gradient, slope)


@rule(aten.relu.default)
def _relu(b: Builder, node: Node, position: Position) -> int:
    value = b.value(args_of(node)[0], position)
    return b.apply("maximum", value, b.const(0, b.dtype(value)))


@rule(aten.threshold_backward.default)
def _threshold_backward(b: Builder, node: Node, position: Position) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    gradient, x = (operand(b, a, position, register) for a in args_of(node)[:2])
    below = b.apply("le", x, number(b, args_of(node)[2], register), dtype="b1")
    return b.apply("where", below, b.const(0, register), gradient, dtype=register)


@rule(aten.hardtanh_backward.default)
def _hardtanh_backward(b: Builder, node: Node, position: Position) -> int:
    register = REGISTER_OF[b.facts[node].dtype]
    gradient, x = (operand(b, a, position, register) for a in args_of(node)[:2])
    low, high = (number(b, v, register) for v in args_of(node)[2:4])
    under = b.apply("le", x, low, dtype="b1")
    over = b.apply("ge", x, high, dtype="b1")
    outside = b.apply("logical_or", under, over)
    return b.apply("where", outside, b.const(0, register), gradient, dtype=register)


@rule(aten.leaky_relu.default)
def _leaky_relu(b: Builder, node: Node, position: Position) -> int:
    register, (x,) = _float_operands(b, node, position, 1)
    slope = number(b, args_of(node)[1] if len(args_of(node)) > 1 else 0.01, register)
    above = b.apply("gt", x, b.const(0.0, register), dtype="b1")
    return b.apply("where", above, x, b.apply("mul", x, slope), dtype=register)


@rule(aten.leaky_relu_backward.default)
def _leaky_relu_backward(b: Builder, node: Node, position: Position) -> int:
    register, (gradient, x) = _float_operands(b, node, position, 2)
    slope = number(b, args_of(node)[2], register)
    above = b.apply("gt", x, b.const(0.0, register), dtype="b1")
    return b.apply("where", above, gradient, b.apply("mul", gradient, slope), dtype=register)


@rule(aten.softplus.default)
def _softplus(b: Builder, node: Node, position: Position) -> int:
    register, (x,) = _float_operands(b, node, position, 1)
    beta = number(b, argument(node, 1, "beta", 1), register)
    scaled = b.apply("mul", x, beta)
    soft = b.apply("div", b.apply("log1p", b.apply("exp", scaled)), beta)
    linear = _over_threshold(b, node, scaled, argument(node, 2, "threshold", 20))
    return b.apply("where", linear, x, soft, dtype=register)


@rule(aten.softplus_backward.default)
def _softplus_backward(b: Builder, node: Node, position: Position) -> int:
    register, (gradient, x) = _float_operands(b, node, position, 2)
    scaled = b.apply("mul", x, number(b, args_of(node)[2], register))
    power = b.apply("exp", scaled)
    slope = b.apply("div", power, b.apply("add", power, b.const(1.0, register)))
    linear = _over_threshold(b, node, scaled, args_of(node)[3])
    soft = b.apply("mul", gradient, slope)
    return b.apply("where", linear, gradient, soft, dtype=register)


def _over_threshold(b: Builder, node: Node, scaled: int, threshold: float) -> int:
    return b.apply("gt", scaled, number(b, threshold, b.dtype(scaled)), dtype="b1")


@rule(aten.elu.default)
def _elu(b: Builder, node: Node, position: Position) -> int:
    register, (x,) = _float_operands(b, node, position, 1)
    alpha, scale, input_scale = (
        argument(node, place, name, 1)
        for place, name in ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    )
    above = b.apply("gt", x, b.const(0.0, register), dtype="b1")
    curve = b.apply("expm1", b.apply("mul", x, number(b, input_scale, register)))
    curve = b.apply("mul", curve, number(b, alpha, register))
    chosen = b.apply("where", above, x, curve, dtype=register)
    return b.apply("mul", chosen, number(b, scale, register))


@rule(aten.elu_backward.default)
def _elu_backward(b: Builder, node: Node, position: Position) -> int:
    gradient_node, alpha, scale, input_scale, is_result, x_node = args_of(node)
    register = REGISTER_OF[b.facts[node].dtype]
    gradient = operand(b, gradient_node, position, register)
    x = operand(b, x_node, position, register)
    below = b.apply("le", x, b.const(0.0, register), dtype="b1")
    factor = number(b, input_scale, register)
    if is_result:
        curve = b.apply("add", x, number(b, alpha, register))
    else:
        curve = b.apply("exp", b.apply("mul", x, factor))
        curve = b.apply("mul", number(b, alpha, register), curve)
    steep = b.apply("mul", b.apply("mul", gradient, factor), curve)
    chosen = b.apply("where", below, steep, gradient, dtype=register)
    return b.apply("mul", chosen, number(b, scale, register))
