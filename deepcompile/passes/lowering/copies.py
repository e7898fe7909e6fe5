"""Scalar rules of conversions and copies: the operand itself, perhaps in another dtype."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...ir.ops import REGISTER_OF
from .builder import Builder
from .operands import number, read
from .rules import rule
from .shapes import args_of
from .views import Position

aten = torch.ops.aten
prims = torch.ops.prims


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
