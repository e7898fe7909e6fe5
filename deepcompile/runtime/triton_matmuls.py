"""Matrix products of a program that could take the kernel after them along as their epilogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..codegen.program import ProgramSpec
from ..codegen.steps import ExternStep, KernelStep, Layout, TensorRef
from ..codegen.triton_matmul import MatmulShape, is_epilogue
from ..ir.index import ZERO, Index
from .launch_table import ALIGNMENT
from .triton_launches import divisible_arguments

aten = torch.ops.aten
_OPERANDS: Mapping[Any, tuple[str, ...]] = {
    aten.mm.out: ("left", "right"),
    aten.addmm.out: ("bias", "left", "right"),
}
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True)
class Fusible:
    """A product and the kernel after it.

    Attributes:
        buffer: of the kernel, that reads the product.
        operands: slot and bytes in it by name, in the order of the function's arguments.
    """

    product: ExternStep
    epilogue: KernelStep
    shape: MatmulShape
    buffer: str
    operands: Mapping[str, tuple[int, int]]

    def divisible(self, sizes: Mapping[str, int]) -> frozenset[str]:
        """Arguments that are multiples of 16 if all slots begin at such."""
        offsets = [int(offset.evaluate(sizes)) for offset in self.epilogue.offsets]
        found = {name for name, (_, at) in self.operands.items() if at % ALIGNMENT == 0}
        return divisible_arguments(self.epilogue.op.nest, offsets, {}) | found


def fusible(spec: ProgramSpec, number: int, sizes: Mapping[str, int]) -> Fusible | None:
    """What step `number` and the next one can become, if only they touch the product."""
    steps = spec.steps[number : number + 2]
    if len(steps) < 2:
        return None
    product, epilogue = steps
    if not isinstance(product, ExternStep) or not isinstance(epilogue, KernelStep):
        return None
    names = _OPERANDS.get(product.target)
    if names is None or product.kwargs or len(product.args) != len(names) or product.out is None:
        return None
    slot = spec.slots[product.out]
    if slot.storage != "arena" or (slot.first, slot.last) != (number, number + 1):
        return None
    given = dict(zip(names, product.args, strict=True))
    if not all(isinstance(value, TensorRef) for value in given.values()):
        return None
    shape = _shape(given, slot.layout, sizes)
    places = [
        (buffer.name, offset)
        for buffer, place, offset in zip(
            epilogue.op.nest.buffers, epilogue.slots, epilogue.offsets, strict=True
        )
        if place == product.out
    ]
    if shape is None or len(places) != 1 or places[0][1] != ZERO or epilogue.sizes:
        return None
    for buffer, place in zip(epilogue.op.nest.buffers, epilogue.slots, strict=True):
        # Written in place: other tiles may still have to read it as an operand.
        if buffer.role == "inout" and place != product.out:
            return None
    name = places[0][0]
    if not is_epilogue(epilogue.op.nest, name, shape):
        return None
    order = ("left", "right", "bias")[: 3 if shape.bias else 2]
    operands = {name: _place(given[name], sizes) for name in order}
    return Fusible(product, epilogue, shape, name, operands)


def _shape(
    given: Mapping[str, TensorRef], result: Layout, sizes: Mapping[str, int]
) -> MatmulShape | None:
    left, right, bias = given["left"].layout, given["right"].layout, given.get("bias")
    dtype = _DTYPES.get(result.dtype)
    if dtype is None or {left.dtype, right.dtype} != {result.dtype}:
        return None
    rows, depth = (int(size.evaluate(sizes)) for size in left.shape)
    columns = int(right.shape[1].evaluate(sizes))
    if not rows or not columns or not depth:
        return None
    if result.strides != (Index.of(columns), Index.of(1)):
        return None
    if bias is not None and (
        bias.layout.dtype != result.dtype
        or bias.layout.strides != (Index.of(1),)
        or bias.layout.shape != (Index.of(columns),)
    ):
        return None
    strides = [
        (int(layout.strides[0].evaluate(sizes)), int(layout.strides[1].evaluate(sizes)))
        for layout in (left, right)
    ]
    return MatmulShape(rows, columns, depth, strides[0], strides[1], dtype, bias is not None)


def _place(ref: TensorRef, sizes: Mapping[str, int]) -> tuple[int, int]:
    return ref.slot, int(ref.offset.evaluate(sizes)) * ref.layout.dtype.itemsize
