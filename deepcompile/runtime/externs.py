"""Calls of ATen from a program: arguments worked out once, results as tracing promised them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Protocol

import torch

from ..codegen.steps import ExternStep, Layout, SizeRef, TensorRef
from ..ir.collectives import is_launch
from ..ir.index import Index


class Memory(Protocol):
    """Where a running call keeps the tensor of each slot, and its address."""

    tensors: list[Any]
    pointers: Any


def prepare_extern(
    step: ExternStep, sizes: Mapping[str, int], read_by_kernels: frozenset[int]
) -> Callable[[Memory], None]:
    """An ATen call as a function of the tensors at hand, with all shapes worked out."""
    arguments = tuple(_template(value, sizes) for value in step.args)
    keywords = {name: _template(value, sizes) for name, value in step.kwargs.items()}
    target, out, results, single = step.target, step.out, step.results, step.single

    def values(memory: Memory) -> tuple[list[Any], dict[str, Any]]:
        tensors = memory.tensors
        positional = [a(tensors) if _is_template(a) else a for a in arguments]
        named = {k: a(tensors) if _is_template(a) else a for k, a in keywords.items()}
        return positional, named

    if out is not None:

        def run_out(memory: Memory) -> None:
            positional, named = values(memory)
            target(*positional, **named, out=memory.tensors[out])

        return run_out

    def run(memory: Memory) -> None:
        positional, named = values(memory)
        made = target(*positional, **named)
        for slot, tensor in zip(results, [made] if single else made, strict=False):
            if slot is None or tensor is None:
                continue
            layout = layouts[slot]
            if layout is not None and (
                tensor.stride() != layout[1] or tensor.dtype != layout[2] or not tensor.numel()
            ):
                if tensor.shape == layout[0]:
                    tensor = as_traced(tensor, layout)
                elif slot in read_by_kernels:
                    promised = f"where tracing promised {layout[0]}"
                    raise RuntimeError(f"{target} gave shape {tuple(tensor.shape)} {promised}")
            memory.tensors[slot] = tensor
            memory.pointers[slot] = tensor.data_ptr()

    layouts: dict[int, Any] = {}
    for slot in results:
        if slot is not None:
            # What a collective gives is not there yet: the step that waits for it looks at it.
            layouts[slot] = None if is_launch(target) else step_layout(step, slot, sizes)
    return run


def step_layout(step: ExternStep, slot: int, sizes: Mapping[str, int]) -> Any:
    """Sizes and strides that later steps expect of a result."""
    layout = step.layouts.get(slot)
    if layout is None:
        return None
    return (
        tuple(int(index.evaluate(sizes)) for index in layout.shape),
        tuple(int(index.evaluate(sizes)) for index in layout.strides),
        layout.dtype,
    )


def as_traced(
    tensor: torch.Tensor, layout: tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
) -> torch.Tensor:
    """A result in the strides and dtype that tracing promised to whatever reads it.

    For some ops torch's fake result has other strides than the real one, or another dtype.
    """
    shape, strides, dtype = layout
    moved = any(
        size > 1 and have != want
        for size, have, want in zip(shape, tensor.stride(), strides, strict=True)
    )
    if tensor.dtype == dtype and (not moved or not tensor.numel()):
        return tensor
    return torch.empty_strided(shape, strides, dtype=dtype, device=tensor.device).copy_(tensor)


def _template(value: Any, sizes: Mapping[str, int]) -> Any:
    """A constant, or a function from the tensor table to the argument."""
    if isinstance(value, TensorRef):
        return tensor_of(value, sizes)
    if isinstance(value, SizeRef):
        return int(value.index.evaluate(sizes))
    if isinstance(value, (list, tuple)):
        items = [_template(item, sizes) for item in value]
        if any(map(_is_template, items)):
            kind = type(value) if type(value) in (list, tuple) else list
            return lambda tensors: kind(
                item(tensors) if _is_template(item) else item for item in items
            )
        return items
    return value


def _is_template(value: Any) -> bool:
    # Ops are callable too, and arguments of higher-order ops: only our own functions count.
    return isinstance(value, FunctionType)


def tensor_of(ref: TensorRef, sizes: Mapping[str, int]) -> Callable[[list[Any]], Any]:
    """From the tensors of the slots to the tensor that `ref` means."""
    slot = ref.slot
    if ref.whole:
        return lambda tensors: tensors[slot]
    shape, strides, offset = _concrete(ref.layout, ref.offset, sizes)

    def view(tensors: list[Any]) -> torch.Tensor:
        base = tensors[slot]
        return base.as_strided(shape, strides, base.storage_offset() + offset)

    return view


def _concrete(
    layout: Layout, offset: Index, sizes: Mapping[str, int]
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return (
        tuple(int(index.evaluate(sizes)) for index in layout.shape),
        tuple(int(index.evaluate(sizes)) for index in layout.strides),
        int(offset.evaluate(sizes)),
    )
