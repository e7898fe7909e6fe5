"""Scalar rules: the value of a pointwise or creation node at a position."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Node

from ...ir.index import ZERO, Index, contiguous_strides
from ...ir.ops import BY_ATEN, REGISTER_OF, ScalarOp
from .builder import Builder
from .reductions import lower_reduction, reduction_of
from .shapes import CannotLower, args_of, argument, dtype_name, size_index
from .views import Position, broadcast_position

aten = torch.ops.aten
prims = torch.ops.prims
Rule = Callable[[Builder, Node, Position], int]
RULES: dict[Any, Rule] = {}
_NARROW_INTS = ("i16", "i8", "u8")


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the scalar rule of ATen overloads."""

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


@lru_cache(maxsize=4096)
def scalar_op(target: Any) -> ScalarOp | None:
    """The op-table row that is the whole meaning of an overload, if there is one."""
    name = f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    return BY_ATEN.get(name)


def is_scalar_rule(node: Node) -> bool:
    """Whether a node is pointwise (or a creation, or a gather) with a rule here."""
    if node.op != "call_function":
        return False
    if node.target in RULES:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and scalar_op(node.target) is not None


def lower(b: Builder, node: Node, position: Position) -> int:
    """The value of a computed node at a position.

    Raises:
        CannotLower: when no rule knows the node.
    """
    if node.target in RULES:
        return RULES[node.target](b, node, position)
    reduction = reduction_of(node)
    if reduction is not None:
        return lower_reduction(b, node, reduction, position)
    if isinstance(node.target, torch._ops.OpOverload):
        op = scalar_op(node.target)
        if op is not None:
            return _generic(b, node, position, op)
    raise CannotLower(f"{node.target} has no kernel rule")


# -- operands -------------------------------------------------------------------------------------


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


def _generic(b: Builder, node: Node, position: Position, op: ScalarOp) -> int:
    arguments = list(args_of(node)[: op.arity])
    if len(args_of(node)) > op.arity or len(arguments) < op.arity or node.kwargs:
        raise CannotLower(f"{node.target} with these arguments")
    if op.name == "pow":
        return _pow(b, node, position)
    dtype = dtype_name(compute_dtype(arguments, op.int_to_float))
    register = REGISTER_OF[dtype]
    values = [operand_of(b, argument, position, dtype) for argument in arguments]
    if op.discontinuous:
        values = [b.rounded(value, dtype) for value in values]
    out = "b1" if op.result == "bool" else register
    return result(b, node, b.apply(op.name, *values, dtype=out))


# -- arithmetic with extra arguments --------------------------------------------------------------


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


# -- conversion and copies ------------------------------------------------------------------------


@rule(aten._to_copy.default, prims.convert_element_type.default)
def _convert(b: Builder, node: Node, position: Position) -> int:
    source = args_of(node)[0]
    value = b.rounded(b.value(source, position), b.facts[source].dtype)
    return b.cast(value, b.facts[node].dtype)


@rule(
    aten.clone.default,
    aten.lift_fresh_copy.default,
    aten.view_copy.default,
    aten.contiguous.default,
    prims.device_put.default,
)
def _clone(b: Builder, node: Node, position: Position) -> int:
    return b.value(args_of(node)[0], position)


@rule(aten.copy.default, aten.copy_.default)
def _copy(b: Builder, node: Node, position: Position) -> int:
    source = args_of(node)[1]
    target = b.facts[node].dtype
    if not isinstance(source, Node):
        return number(b, source, REGISTER_OF[target])
    value = b.rounded(read(b, source, position), b.facts[source].dtype)
    return b.cast(value, target)


# -- creation -------------------------------------------------------------------------------------


@rule(aten.full.default, aten.full_like.default, aten.scalar_tensor.default, aten.new_full.default)
def _full(b: Builder, node: Node, position: Position) -> int:
    target: Any = node.target
    place = {aten.scalar_tensor.default: 0, aten.new_full.default: 2}.get(target, 1)
    dtype = b.facts[node].dtype
    value = number(b, args_of(node)[place], REGISTER_OF[dtype])
    return b.cast(value, dtype)


def _filled(value: int) -> Rule:
    def fill(b: Builder, node: Node, position: Position) -> int:
        return b.const(value, REGISTER_OF[b.facts[node].dtype])

    return fill


rule(
    aten.zeros.default,
    aten.zeros_like.default,
    aten._efficientzerotensor.default,
    aten.new_zeros.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
    aten.empty_permuted.default,
    aten.new_empty_strided.default,
)(_filled(0))
rule(aten.ones.default, aten.ones_like.default, aten.new_ones.default)(_filled(1))


@rule(aten.arange.start_step, aten.arange.start, aten.arange.default, prims.iota.default)
def _arange(b: Builder, node: Node, position: Position) -> int:
    start: Any = 0
    step: Any = 1
    if node.target is prims.iota.default:
        start, step = node.kwargs.get("start", 0), node.kwargs.get("step", 1)
    elif node.target is not aten.arange.default:
        start = args_of(node)[0]
        step = args_of(node)[2] if len(args_of(node)) > 2 else 1
    dtype = b.facts[node].dtype
    register = REGISTER_OF[dtype]
    whole = not any(isinstance(v, float) for v in (start, step))
    if whole:
        index = size_of(start) + position[0] * size_of(step)
        return b.cast(b.index(index), dtype)
    wide = "f64" if register == "f64" else "f32"
    at = b.cast(b.index(position[0]), wide)
    value = b.apply("add", number(b, start, wide), b.apply("mul", at, number(b, step, wide)))
    return b.cast(value, dtype)


def size_of(value: Any) -> Index:
    """An int, a SymInt or a node of one, as an `Index`."""
    return size_index(value.meta["val"] if isinstance(value, Node) else value)


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


@rule(aten.eye.default, aten.eye.m)
def _eye(b: Builder, node: Node, position: Position) -> int:
    on = b.in_range(position[1] - position[0], ZERO, Index.of(1))
    return b.cast(on, b.facts[node].dtype)


# -- random ---------------------------------------------------------------------------------------


def _philox(kind: str) -> Rule:
    def lower_philox(b: Builder, node: Node, position: Position) -> int:
        seed, site = args_of(node)[:2]
        linear = Index.of(site) * Index.of(1 << 40)
        shape = b.facts[node].shape
        for at, stride in zip(position, contiguous_strides(shape), strict=True):
            linear = linear + at * stride
        value = b.rand(kind, b.value(seed, (ZERO,)), linear)
        return b.cast(value, b.facts[node].dtype)

    return lower_philox


def register_philox() -> None:
    """Add the rules of our random ops, once their library is loaded."""
    namespace = torch.ops.deepcompile
    RULES.setdefault(namespace.philox_uniform.default, _philox("uniform"))
    RULES.setdefault(namespace.philox_normal.default, _philox("normal"))


@rule(operator.getitem)
def _getitem(b: Builder, node: Node, position: Position) -> int:
    reduction = reduction_of(node)
    if reduction is None:
        raise CannotLower(f"{args_of(node)[0]} gives several results")
    return lower_reduction(b, node, reduction, position)
