"""The memory of one running call: what each slot points to, and a tensor where one is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .arena import ALIGNMENT, ArenaPool


@dataclass(frozen=True)
class Place:
    """Where in the arena a slot lies, in bytes, and its layout; `shape` is None: no tensor."""

    slot: int
    offset: int
    shape: tuple[int, ...] | None
    strides: tuple[int, ...] = ()
    dtype: torch.dtype = torch.uint8


class Frame:
    """Pointers and tensors by slot.

    Args:
        count: of slots.
        constants: tensors that stay the same in all calls, by slot.
    """

    def __init__(self, count: int, constants: Iterable[tuple[int, torch.Tensor]] = ()) -> None:
        self.pointers: Any = (ctypes.c_void_p * max(count, 1))()
        self.tensors: list[Any] = [None] * count
        self.block: torch.Tensor | None = None
        for number, constant in constants:
            self.tensors[number] = constant
            self.pointers[number] = constant.data_ptr()

    def bind_arena(
        self, block: torch.Tensor, places: Sequence[Place], size: int, pool: ArenaPool
    ) -> int:
        """Place slots in `block`; returns the address behind the arena's `size` bytes."""
        start = -block.data_ptr() % ALIGNMENT
        base = block.data_ptr() + start
        if block is not self.block:
            for place in places:
                self.pointers[place.slot] = base + place.offset
                if place.shape is not None:
                    self.tensors[place.slot] = _view(block[start + place.offset :], place)
            self.block = block
            pool.hold(self)
        return base + size

    def let_go(self, blocks: Sequence[torch.Tensor]) -> None:
        """Drop the views of a block that the pool no longer keeps."""
        mine = self.block
        if mine is None or not any(block is mine for block in blocks):
            return
        start, end = mine.data_ptr(), mine.data_ptr() + mine.numel()
        for number, tensor in enumerate(self.tensors):
            if tensor is not None and start <= tensor.data_ptr() < end:
                self.tensors[number] = None
        self.block = None


def _view(flat: torch.Tensor, place: Place) -> torch.Tensor:
    assert place.shape is not None
    usable = flat.numel() // place.dtype.itemsize * place.dtype.itemsize
    return flat[:usable].view(place.dtype).as_strided(place.shape, place.strides)
