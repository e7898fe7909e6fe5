"""Matrix products as steps: which library, and which operand is first brought to row-major order.

oneDNN takes its second operand in either order, its first only by rows: ATen would copy it on
one thread. Here a transposition is a step of the program on all threads, of the smaller of the
operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..cost.gemm import GemmChoice
from ..ir.index import ONE, ZERO
from .steps import ExternStep, Layout, Slot, Step, TensorRef, TransposeStep

_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@dataclass(frozen=True)
class Product:
    """`left @ right + bias`, sizes by example."""

    left: TensorRef
    right: TensorRef
    bias: TensorRef | None
    rows: int
    depth: int
    columns: int


def onednn_available() -> bool:
    """Whether this torch can multiply through oneDNN now (it can be switched off)."""
    return bool(
        _LINEAR is not None
        and torch.backends.mkldnn.is_available()
        and getattr(torch.backends.mkldnn, "enabled", True)
    )


def by_rows(layout: Layout) -> bool:
    """Whether a matrix is stored row after row."""
    return layout.strides[1] == ONE


def by_columns(layout: Layout) -> bool:
    """Whether a matrix is stored column after column."""
    return layout.strides[0] == ONE


def transposed(ref: TensorRef) -> TensorRef:
    """The transposed view of a matrix."""
    layout = Layout(ref.layout.shape[::-1], ref.layout.strides[::-1], ref.layout.dtype)
    return TensorRef(ref.slot, layout, ref.offset, False)


def gemm_steps(
    name: str,
    product: Product,
    result: Layout,
    choice: GemmChoice,
    new_slot: Callable[[Layout, Any], Slot],
) -> tuple[list[Step], int] | None:
    """Steps that compute a product with oneDNN, and the slot of its result; None for ATen."""
    left, right = product.left, product.right
    if not (_matrix(left) and _matrix(right) and onednn_available()):
        return None
    if not choice.prefers_onednn(product.rows, product.columns, product.depth):
        return None
    if not by_rows(result):
        return None
    if by_rows(left.layout):
        return _linear(name, left, right, product.bias, result, new_slot)
    if not by_columns(left.layout) or not (choice.by_layout or left.offset == ZERO):
        return None
    turn_left = product.rows * product.depth
    turn_right = product.rows * product.columns
    if by_rows(right.layout):
        turn_right += product.depth * product.columns
    right_turns = choice.by_layout or right.offset == ZERO or by_columns(right.layout)
    if product.bias is None and turn_right < turn_left and right_turns:
        return _swapped(name, left, right, result, new_slot)
    steps: list[Step] = []
    turned = _turn(left, steps, new_slot)
    rest, slot = _linear(name, turned, right, product.bias, result, new_slot)
    return [*steps, *rest], slot


def _matrix(ref: TensorRef) -> bool:
    layout = ref.layout
    if len(layout.shape) != 2 or layout.dtype is not torch.float32:
        return False
    return by_rows(layout) or by_columns(layout)


def _turn(ref: TensorRef, steps: list[Step], new_slot: Callable[[Layout, Any], Slot]) -> TensorRef:
    """A row-major copy of a column-major matrix."""
    rows, columns = ref.layout.shape
    layout = Layout((rows, columns), (columns, ONE), ref.layout.dtype)
    slot = new_slot(layout, "arena")
    # Stored by columns with stride s: as rows of its transpose, `columns` rows of length `rows`.
    stride = ref.layout.strides[1]
    steps.append(TransposeStep(ref.slot, slot.number, columns, rows, stride, columns, ref.offset))
    return TensorRef(slot.number, layout, ZERO, True)


def _linear(
    name: str,
    left: TensorRef,
    right: TensorRef,
    bias: TensorRef | None,
    result: Layout,
    new_slot: Callable[[Layout, Any], Slot],
) -> tuple[list[Step], int]:
    slot = new_slot(result, "extern")
    arguments: tuple[Any, ...] = (left, transposed(right), bias, "none", [], "")
    step = ExternStep(
        name, _LINEAR.default, arguments, {}, None, (slot.number,), True, {slot.number: result}
    )
    return [step], slot.number


def _swapped(
    name: str,
    left: TensorRef,
    right: TensorRef,
    result: Layout,
    new_slot: Callable[[Layout, Any], Slot],
) -> tuple[list[Step], int]:
    """The transposed product, then its transposition."""
    steps: list[Step] = []
    turned = transposed(right)
    if not by_rows(turned.layout):
        turned = _turn(turned, steps, new_slot)
    rows, columns = result.shape
    layout = Layout((columns, rows), (rows, ONE), result.dtype)
    rest, made = _linear(name, turned, transposed(left), None, layout, new_slot)
    slot = new_slot(result, "arena")
    steps += rest
    steps.append(TransposeStep(made, slot.number, columns, rows, rows, columns))
    return steps, slot.number
