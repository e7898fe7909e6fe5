"""Scaled dot-product attention: batch and heads are factors.

Keys and values with fewer heads than queries share their groups of heads: heads can be sharded
where each rank has whole groups.
"""

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

#: Outputs with (batch, heads) in front, by operator; the others are seeds and lengths.
_SHAPED = 2


def _factors(node: Node, with_heads: int) -> tuple[Factor, ...]:
    """Batch (dimension 0) and heads (1) of the first `with_heads` inputs, and of a mask."""
    inputs = [shape_of(source) for source in tensor_inputs(node)]
    outputs = outputs_of(node)
    factors = []
    for dim in (0, 1):
        full = max(shape[dim] for shape in inputs[:with_heads] if len(shape) == 4)
        taken = tuple(
            dim if index < with_heads or (len(shape) == 4 and shape[dim] == full > 1) else None
            for index, shape in enumerate(inputs)
        )
        made = tuple(
            dim if value is not None and value.dim() > dim and value.shape[dim] > 1 else None
            for value in outputs
        )
        factors.append(Factor(taken, made, whole=True))
    return tuple(factors)


@rule_for(aten._scaled_dot_product_flash_attention_for_cpu.default)
@rule_for(aten._scaled_dot_product_flash_attention.default)
@rule_for(aten._scaled_dot_product_efficient_attention.default)
@rule_for(aten._scaled_dot_product_cudnn_attention.default)
def _attention(node: Node) -> Rule | None:
    if _drops(node):
        return None
    return Rule(_factors(node, 3))


@rule_for(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def _attention_backward(node: Node) -> Rule | None:
    if _drops(node):
        return None
    return Rule(_factors(node, 6))


def _drops(node: Node) -> bool:
    """Whether random numbers are drawn inside, which differ where heads are sharded."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index("dropout_p") if "dropout_p" in names else -1
    value: Any = node.kwargs.get("dropout_p", 0.0)
    if 0 <= place < len(node.args):
        value = node.args[place]
    return bool(value)
