"""Pointwise operations: every dimension of the result is a factor."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PARTIAL, REPLICATE, Partial, PartialKind
from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    Strategy,
    linear_in,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


def broadcast_factors(node: Node) -> tuple[Factor, ...]:
    """One factor for each dimension of the result that is longer than 1."""
    shape = shape_of(node)
    inputs = [shape_of(source) for source in tensor_inputs(node)]
    factors = []
    for dim, extent in enumerate(shape):
        if extent == 1:
            continue
        from_end = dim - len(shape)
        dims = tuple(
            None if len(other) < -from_end or other[from_end] == 1 else len(other) + from_end
            for other in inputs
        )
        factors.append(Factor(dims, (dim,)))
    return tuple(factors)


def pointwise_rule(node: Node) -> Rule:
    """Of an operation of which nothing is known but that it works on each element alone."""
    return Rule(broadcast_factors(node))


@rule_for(
    aten.neg.default,
    aten.clone.default,
    aten.mul.Scalar,
    aten.div.Scalar,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
    aten.real,
    aten.imag,
)
def _linear(node: Node) -> Rule:
    kinds: tuple[PartialKind, ...] = ("sum", "max", "min") if node.target in _COPIES else ("sum",)
    return Rule(broadcast_factors(node), linear_in(node, (0,), kinds=kinds))


_COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default}


@rule_for(aten._to_copy.default)
def _cast(node: Node) -> Rule:
    source, target = (tensor_inputs(node)[0].meta["val"].dtype, node.meta["val"].dtype)
    if not (source.is_floating_point and target.is_floating_point):
        return Rule(broadcast_factors(node))
    # Sums are not rounded before all parts are there.
    widens = torch.promote_types(source, target) == target
    kinds: tuple[PartialKind, ...] = ("sum", "max", "min") if widens else ("max", "min")
    return Rule(broadcast_factors(node), linear_in(node, (0,), kinds=kinds))


@rule_for(aten.add.Tensor, aten.sub.Tensor)
def _sum(node: Node) -> Rule:
    count = len(tensor_inputs(node))
    both = linear_in(node, range(count)) if count == 2 else ()
    return Rule(broadcast_factors(node), both)


@rule_for(aten.mul.Tensor)
def _product(node: Node) -> Rule:
    inputs = tensor_inputs(node)
    if len(inputs) == 1:
        return Rule(broadcast_factors(node), linear_in(node, (0,)))
    if inputs[0] is inputs[1]:
        return Rule(broadcast_factors(node))
    return Rule(broadcast_factors(node), linear_in(node, (0,), (1,)))


@rule_for(aten.div.Tensor)
def _quotient(node: Node) -> Rule:
    linear: tuple[Strategy, ...] = ()
    if isinstance(node.args[0], Node) and node.args[0] is not node.args[1]:
        linear = linear_in(node, (0,))
    return Rule(broadcast_factors(node), linear)


@rule_for(aten.copy.default)
def _copy(node: Node) -> Rule:
    into, source = (value.meta["val"].dtype for value in tensor_inputs(node))
    linear = linear_in(node, (1,), kinds=("sum", "max", "min")) if into == source else ()
    return Rule(broadcast_factors(node), linear)


@rule_for(aten.copy_.default)
def _write(node: Node) -> Rule:
    """A buffer of the model, which every rank has whole."""
    return Rule()


@rule_for(aten.where.self)
def _where(node: Node) -> Rule:
    inputs = tensor_inputs(node)
    linear: tuple[Strategy, ...] = ()
    if len(inputs) == 3:
        linear = (Strategy((PARTIAL,), (REPLICATE, PARTIAL, PARTIAL)),)
        for position in (1, 2):
            # The other branch is zero everywhere: part of any sum.
            if _is_zero(inputs[3 - position]):
                taken = [REPLICATE, REPLICATE, REPLICATE]
                taken[position] = PARTIAL  # type: ignore[call-overload]
                linear += (Strategy((PARTIAL,), tuple(taken)),)
    return Rule(broadcast_factors(node), linear)


def _is_zero(node: Node) -> bool:
    creates = (aten.scalar_tensor.default, aten.full.default)
    return node.target in creates and node.args[-1] in (0, 0.0, False)


@rule_for(aten.threshold_backward.default, aten.silu_backward.default, aten.tanh_backward.default)
@rule_for(aten.gelu_backward.default, aten.sigmoid_backward.default)
@rule_for(aten.softplus_backward.default, aten.leaky_relu_backward.default)
@rule_for(aten.elu_backward.default, aten.hardtanh_backward.default)
def _gradient(node: Node) -> Rule:
    return Rule(broadcast_factors(node), linear_in(node, (0,)))


@rule_for(aten.masked_fill.Scalar)
def _masked_fill(node: Node) -> Rule:
    zero: Any = node.args[2]
    linear = (Strategy((Partial(),), (PARTIAL, REPLICATE)),) if zero == 0 else ()
    return Rule(broadcast_factors(node), linear)
