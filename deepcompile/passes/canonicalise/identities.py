"""Ops that return what they were given, once shape, strides and type are seen to be the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from deepcompile.passes.canonicalise.layout import argument, value
from deepcompile.passes.canonicalise.views import permutation

aten = torch.ops.aten
prims = torch.ops.prims


def _always(node: Node) -> bool:
    return True


def _permutes_nothing(node: Node) -> bool:
    order = permutation(node)
    return order is not None and order == tuple(range(len(order)))


def _full_slice(node: Node) -> bool:
    return argument(node, 4, "step", 1) == 1


def _unpinned(node: Node) -> bool:
    return not node.kwargs.get("pin_memory")


def _is_number(found: Any, wanted: int) -> bool:
    return type(found) in (int, float) and found == wanted


def _by_one(node: Node) -> bool:
    return _is_number(argument(node, 1, "other"), 1) and not node.kwargs


def _to_the_one(node: Node) -> bool:
    return _is_number(argument(node, 1, "exponent"), 1)


def _adds_nothing(node: Node) -> bool:
    """Integers only: `-0.0 + 0` is `0.0`."""
    tensor = value(node)
    assert tensor is not None
    return not tensor.dtype.is_floating_point and not tensor.dtype.is_complex and _zero(node)


def _subtracts_nothing(node: Node) -> bool:
    """Floats too: `-0.0 - 0.0` is `-0.0`; but `-0.0 - (-0.0)` is `0.0`."""
    other = argument(node, 1, "other")
    alpha = argument(node, 2, "alpha", 1)
    tensor = value(node)
    assert tensor is not None
    positive = _zero(node) and math.copysign(1.0, other) > 0 and _is_number(alpha, 1)
    return positive and not tensor.dtype.is_complex


def _zero(node: Node) -> bool:
    return _is_number(argument(node, 1, "other"), 0)


def _joins_one(node: Node) -> bool:
    return len(argument(node, 0, "tensors", ())) == 1


IDENTITIES: dict[Any, Callable[[Node], bool]] = {
    aten.detach.default: _always,
    aten.alias.default: _always,
    prims.view_of.default: _always,
    aten.view.default: _always,
    aten.reshape.default: _always,
    aten._unsafe_view.default: _always,
    aten.expand.default: _always,
    aten.squeeze.default: _always,
    aten.squeeze.dim: _always,
    aten.squeeze.dims: _always,
    aten.permute.default: _permutes_nothing,
    aten.transpose.int: _permutes_nothing,
    aten.t.default: _permutes_nothing,
    aten.slice.Tensor: _full_slice,
    aten.clone.default: _always,
    aten.lift_fresh_copy.default: _always,
    aten._to_copy.default: _unpinned,
    prims.convert_element_type.default: _always,
    aten.mul.Tensor: _by_one,
    aten.mul.Scalar: _by_one,
    aten.div.Tensor: _by_one,
    aten.div.Scalar: _by_one,
    aten.pow.Tensor_Scalar: _to_the_one,
    aten.add.Tensor: _adds_nothing,
    aten.add.Scalar: _adds_nothing,
    aten.sub.Tensor: _subtracts_nothing,
    aten.sub.Scalar: _subtracts_nothing,
    aten.cat.default: _joins_one,
}
"""By op: whether a call is the identity, given that its result has the layout of its source."""


def source_of(node: Node) -> Any:
    """What an op of `IDENTITIES` would return; not a node where it reads a number."""
    first = argument(node, 0, "tensors" if node.target is aten.cat.default else "self")
    return first[0] if isinstance(first, list | tuple) and first else first
