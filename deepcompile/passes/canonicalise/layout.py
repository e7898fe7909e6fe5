"""Shape, strides and type of fake values, compared without adding guards on symbolic sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

Extent = Any
"""An int, or the sympy expression of a symbolic size."""


def argument(node: Node, position: int, name: str = "", default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    args: Any = node.args
    if len(args) > position:
        return args[position]
    return node.kwargs.get(name, default) if name else default


def extents(sizes: Any) -> tuple[Extent, ...]:
    """Sizes or strides with symbolic ones as expressions."""
    return tuple([size if type(size) is int else _expression(size) for size in sizes])


def _expression(size: Any) -> Any:
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def value(node: Node) -> torch.Tensor | None:
    """The fake tensor of a node that computes one strided tensor, else None."""
    found = node.meta.get("val")
    if isinstance(found, torch.Tensor) and found.layout == torch.strided:
        return found
    return None


def same_layout(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether two tensors have the same type, device, shape, strides and offset for certain.

    The offset counts: fake values of views of one of them tell where they lie in its memory.
    """
    return (
        first is not None
        and second is not None
        and first.dtype == second.dtype
        and first.device == second.device
        and first.dim() == second.dim()
        and extents(first.shape) == extents(second.shape)
        and extents(first.stride()) == extents(second.stride())
        and extents((first.storage_offset(),)) == extents((second.storage_offset(),))
        and first.is_conj() == second.is_conj()
        and first.is_neg() == second.is_neg()
    )


def is_contiguous(tensor: torch.Tensor) -> bool:
    """Whether the strides are exactly those of row-major order, for certain."""
    expected: Any = 1
    for size, stride in zip(
        reversed(extents(tensor.shape)), reversed(extents(tensor.stride())), strict=True
    ):
        if stride != expected:
            return False
        expected = expected * size
    return True
