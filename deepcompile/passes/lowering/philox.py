"""Scalar rules of our counter-based random numbers; see `capture/philox.py`."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...ir.index import ZERO, Index, contiguous_strides
from .builder import Builder
from .rules import RULES, Rule
from .shapes import args_of
from .views import Position


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


def _philox_part(kind: str) -> Rule:
    def lower_part(b: Builder, node: Node, position: Position) -> int:
        seed, site, start, _, strides = args_of(node)[:5]
        linear = Index.of(site) * Index.of(1 << 40) + b.as_index(b.value(start, ()))
        for at, stride in zip(position, strides, strict=True):
            linear = linear + at * stride
        value = b.rand(kind, b.value(seed, (ZERO,)), linear)
        return b.cast(value, b.facts[node].dtype)

    return lower_part


def register_philox() -> None:
    """Add the rules of our random ops, once their library is loaded."""
    namespace = torch.ops.deepcompile
    RULES.setdefault(namespace.philox_uniform.default, _philox("uniform"))
    RULES.setdefault(namespace.philox_normal.default, _philox("normal"))
    RULES.setdefault(namespace.philox_uniform_part.default, _philox_part("uniform"))
    RULES.setdefault(namespace.philox_normal_part.default, _philox_part("normal"))
