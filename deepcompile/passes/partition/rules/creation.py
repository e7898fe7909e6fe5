"""Tensors that come from nothing: each rank makes its part."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PARTIAL, REPLICATE, Partial, PartialKind
from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    Strategy,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


def _dims(node: Node, whole: bool = False) -> tuple[Factor, ...]:
    nothing = (None,) * len(tensor_inputs(node))
    return tuple(
        Factor(nothing, (dim,), whole=whole)
        for dim, extent in enumerate(shape_of(node))
        if extent > 1
    )


@rule_for(aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format)
def _constant(node: Node) -> Rule:
    # Zeros on every rank are a part of a sum of zeros.
    zeros = node.target is aten.zeros.default or (
        node.target is aten.full.default and node.args[1] == 0
    )
    return Rule(_dims(node), _PARTIAL if zeros else (), localise=_local_constant)


_PARTIAL = (Strategy((PARTIAL,), ()),)


@rule_for(aten.scalar_tensor.default)
def _scalar(node: Node) -> Rule:
    return Rule((), _PARTIAL if node.args[0] == 0 else ())


def _local_constant(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return emit.call(node.target, list(emit.output_shape(0)), *args[1:], **kwargs)


@rule_for(aten.full_like.default, aten.zeros_like.default, aten.ones_like.default)
@rule_for(aten.empty_like.default)
def _like(node: Node) -> Rule:
    # What is not read need not be whole.
    kinds: tuple[PartialKind, ...] = ("sum", "max", "min")
    unread = [Strategy((REPLICATE,), (Partial(kind),)) for kind in kinds]
    zeros = node.target is aten.zeros_like.default or (
        node.target is aten.full_like.default and node.args[1] == 0
    )
    if zeros:
        unread += [Strategy((PARTIAL,), (REPLICATE,)), Strategy((PARTIAL,), (PARTIAL,))]
    return Rule(
        tuple(Factor((dim,), (dim,)) for dim, extent in enumerate(shape_of(node)) if extent > 1),
        tuple(unread),
    )


@rule_for(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _range(node: Node) -> Rule | None:
    if not all(isinstance(bound, int) for bound in node.args):
        return None
    return Rule(_dims(node, whole=True), localise=_local_range)


def _local_range(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first, step = 0, 1
    if len(args) > 1:
        first = args[0]
    if len(args) > 2:
        step = args[2]
    extent = emit.output_shape(0)[0]
    here = emit.call(aten.arange.start_step, first, first + extent * step, step, **kwargs)
    start = emit.start(emit.outputs[0], 0, extent)
    if start is None:
        return here
    return emit.call(aten.add.Tensor, here, emit.call(aten.mul.Scalar, start, step))
