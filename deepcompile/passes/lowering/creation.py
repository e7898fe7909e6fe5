"""Scalar rules of tensors made of nothing but their positions."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...ir.index import ZERO, Index
from ...ir.ops import REGISTER_OF
from .builder import Builder
from .operands import number, size_of
from .rules import Rule, rule
from .shapes import args_of
from .views import Position

aten = torch.ops.aten
prims = torch.ops.prims


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


@rule(aten.eye.default, aten.eye.m)
def _eye(b: Builder, node: Node, position: Position) -> int:
    on = b.in_range(position[1] - position[0], ZERO, Index.of(1))
    return b.cast(on, b.facts[node].dtype)
