"""Norms where they occur whole: mostly they are taken apart before."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    outputs_of,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


@rule_for(aten.native_layer_norm.default, aten._fused_rms_norm.default)
def _rows(node: Node) -> Rule:
    """What is in front of the normalised dimensions."""
    shape = shape_of(tensor_inputs(node)[0])
    parameters = (None,) * (len(tensor_inputs(node)) - 1)
    inner = len(node.args[1])  # type: ignore[arg-type]
    outputs = len(outputs_of(node))
    return Rule(
        tuple(
            Factor((dim, *parameters), (dim,) * outputs)
            for dim in range(len(shape) - inner)
            if shape[dim] > 1
        )
    )


@rule_for(aten.native_group_norm.default)
def _groups(node: Node) -> Rule:
    parameters = len(tensor_inputs(node)) - 1
    factors = (
        Factor((0, *(None,) * parameters), (0, 0, 0)),
        Factor((1, *(0,) * parameters), (1, 1, 1), whole=True, units=int(node.args[6])),  # type: ignore[arg-type]
    )
    return Rule(factors, localise=_local_groups)


def _local_groups(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch, channels = emit.input_shape(0)[:2]
    groups = args[6] * channels // args[4]
    return emit.call(node.target, *args[:3], batch, channels, args[5], groups, *args[7:], **kwargs)


@rule_for(aten._native_batch_norm_legit_functional.default)
@rule_for(aten._native_batch_norm_legit_no_training.default)
def _channels(node: Node) -> Rule:
    parameters = (0,) * (len(tensor_inputs(node)) - 1)
    outputs = (1, *(0,) * (len(outputs_of(node)) - 1))
    # Outside of training it has no statistics to return.
    made = tuple(
        None if value is not None and value.numel() == 0 else dim
        for value, dim in zip(outputs_of(node), outputs, strict=True)
    )
    factors = [Factor((1, *parameters), made)]
    if node.target is aten._native_batch_norm_legit_no_training.default:
        factors.append(Factor((0, *(None,) * len(parameters)), (0, None, None)))
    return Rule(tuple(factors))
