"""The rule of each ATen overload: the value of a node at a position.

Modules of rules register theirs with `rule` when they are imported; the package imports them all.
Overloads that are one row of the op table as they stand need none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Node

from ...ir.ops import BY_ATEN, OPS, REGISTER_OF, ScalarOp
from .builder import Builder
from .operands import compute_dtype, operand_of, result
from .reductions import lower_reduction, reduction_of
from .refusals import CannotLower
from .shapes import args_of, dtype_name
from .views import Position

Rule = Callable[[Builder, Node, Position], int]
RULES: dict[Any, Rule] = {}
MULTIPLY_ADD = "prims.fma.default"
"""What Dynamo writes for the in-place forms of `addcmul` and `addcdiv`; known by name, as the op is
there only once torch's own compiler has been imported."""


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
    return OPS["fma"] if name == MULTIPLY_ADD else BY_ATEN.get(name)


def is_scalar_rule(node: Node) -> bool:
    """Whether a node is pointwise (or a creation, or a gather) with a rule here."""
    if node.op != "call_function":
        return False
    return has_scalar_rule(node.target)


def has_scalar_rule(target: Any) -> bool:
    """Whether calls of a target have a rule here."""
    if target in RULES:
        return True
    return isinstance(target, torch._ops.OpOverload) and scalar_op(target) is not None


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


def _generic(b: Builder, node: Node, position: Position, op: ScalarOp) -> int:
    arguments = list(args_of(node)[: op.arity])
    if len(args_of(node)) > op.arity or len(arguments) < op.arity or node.kwargs:
        raise CannotLower(f"{node.target} with these arguments")
    dtype = dtype_name(compute_dtype(arguments, op.int_to_float))
    register = REGISTER_OF[dtype]
    values = [operand_of(b, argument, position, dtype) for argument in arguments]
    if op.discontinuous:
        values = [b.rounded(value, dtype) for value in values]
    out = "b1" if op.result == "bool" else register
    return result(b, node, b.apply(op.name, *values, dtype=out))


@rule(operator.getitem)
def _getitem(b: Builder, node: Node, position: Position) -> int:
    reduction = reduction_of(node)
    if reduction is None:
        raise CannotLower(f"{args_of(node)[0]} gives several results")
    return lower_reduction(b, node, reduction, position)
