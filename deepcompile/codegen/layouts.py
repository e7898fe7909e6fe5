"""The layouts of traced tensors, and how far they reach."""

from __future__ import annotations

from typing import Any

import torch

from ..ir.index import Index
from ..passes.lowering.shapes import size_index
from .steps import Layout

ONE = Index.of(1)


def make_layout(shape: Any, strides: Any, dtype: torch.dtype) -> Layout:
    """Of sizes and strides in elements, ints or symbols. Raises CannotLower for other sizes."""
    return Layout(tuple(map(size_index, shape)), tuple(map(size_index, strides)), dtype)


def is_symbolic(value: torch.Tensor) -> bool:
    """Whether a size or stride of the tensor is known only when the graph runs."""
    return bool(value._has_symbolic_sizes_strides)  # type: ignore[attr-defined]


def same_extent(left: Layout, right: Layout) -> bool:
    """Whether two tensors have one dtype and reach equally far from their first element."""
    return left.dtype == right.dtype and _extent(left) == _extent(right)


def _extent(layout: Layout) -> Index:
    found = ONE
    for size, stride in zip(layout.shape, layout.strides, strict=True):
        found = found + (size - ONE) * stride
    return found
