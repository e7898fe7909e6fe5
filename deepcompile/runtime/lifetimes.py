"""Memory taken and let go of in the middle of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..codegen.steps import LifetimeStep, Slot, Step
from .externs import Memory


def prepare_lifetimes(
    step: LifetimeStep, slots: Sequence[Slot], sizes: Mapping[str, int], device: torch.device
) -> Callable[[Memory], None]:
    """A lifetime step as a function of the tensors at hand, with all shapes worked out.

    Memory comes from torch's allocator alone and goes back to it: nothing here keeps any.
    """
    released = step.release
    made = []
    for slot in (slots[number] for number in step.allocate):
        shape = tuple(int(size.evaluate(sizes)) for size in slot.layout.shape)
        strides = tuple(int(stride.evaluate(sizes)) for stride in slot.layout.strides)
        made.append((slot.number, shape, strides, slot.layout.dtype))

    def run(memory: Memory) -> None:
        tensors, pointers = memory.tensors, memory.pointers
        for number in released:
            tensors[number] = None
            pointers[number] = None
        for number, shape, strides, dtype in made:
            tensor = torch.empty_strided(shape, strides, dtype=dtype, device=device)
            tensors[number] = tensor
            pointers[number] = tensor.data_ptr()

    return run


def made_by_steps(steps: Sequence[Step]) -> frozenset[int]:
    """The slots that steps of the program take memory for, not the call before it."""
    return frozenset(
        slot for step in steps if isinstance(step, LifetimeStep) for slot in step.allocate
    )
