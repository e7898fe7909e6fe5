"""One block of memory for the intermediates of a graph, laid out by lifetime.

Offsets are chosen greedily, largest buffer first, at the lowest place free over the buffer's
whole life. The block itself is shared by all programs of a process that do not run at the same
time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

ALIGNMENT = 64
_HUGE = 2 << 20
_MADV_HUGEPAGE = 14


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `size` bytes needed from step `first` to step `last`, both inclusive."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class ArenaPlan:
    """Offsets in bytes, the arena's size, and the largest sum of live bytes: its lower bound."""

    offsets: tuple[int, ...]
    size: int
    bound: int


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to behind the last."""
    if any(size == 0 for size in shape):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def plan_arena(lifetimes: Sequence[Lifetime]) -> ArenaPlan:
    """Offsets for buffers such that no two that live at the same time overlap."""
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first, i))
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, int, Lifetime]] = []
    total = 0
    for number in order:
        life = lifetimes[number]
        size = -(-life.size // ALIGNMENT) * ALIGNMENT
        at = 0
        for start, end, other in placed:
            if other.last < life.first or life.last < other.first:
                continue
            if start - at >= size:
                break
            at = max(at, end)
        offsets[number] = at
        placed.append((at, at + size, life))
        placed.sort(key=lambda item: item[0])
        total = max(total, at + size)
    return ArenaPlan(tuple(offsets), total, _live_bytes(lifetimes))


def _live_bytes(lifetimes: Sequence[Lifetime]) -> int:
    change: dict[int, int] = {}
    for life in lifetimes:
        size = -(-life.size // ALIGNMENT) * ALIGNMENT
        change[life.first] = change.get(life.first, 0) + size
        change[life.last + 1] = change.get(life.last + 1, 0) - size
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


class Holder(Protocol):
    """Someone with views of a block."""

    def let_go(self, blocks: Sequence[torch.Tensor]) -> None:
        """Drop all views of these blocks."""
        ...


class ArenaPool:
    """Blocks lent to running programs. The largest one is kept for the next call.

    On a GPU a pool serves one stream: what comes later in it may overwrite what came earlier.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._lock = threading.Lock()
        self._free: list[torch.Tensor] = []
        self._lent: set[int] = set()
        # Lent blocks that the pool had dropped before: their owner keeps them, not the pool.
        self._foreign: set[int] = set()
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def hold(self, holder: Holder) -> None:
        """Remember who has views of a block, to be told when the block is dropped."""
        with self._lock:
            self._holders.add(holder)

    def _drop_free(self) -> None:
        dropped, self._free = self._free, []
        for holder in list(self._holders):
            holder.let_go(dropped)

    def acquire(self, size: int) -> torch.Tensor:
        """A block of at least `size` bytes that nobody else has."""
        with self._lock:
            for number, block in enumerate(self._free):
                if block.numel() >= size:
                    self._lent.add(id(block))
                    return self._free.pop(number)
            # What is too small now is too small next time: let the larger block replace it.
            self._drop_free()
        block = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=self._device)
        if self._device.type == "cpu":
            _advise_huge_pages(block)
        with self._lock:
            self._lent.add(id(block))
        return block

    def borrow(self, block: torch.Tensor) -> bool:
        """Take one block that was had before; False when somebody else has it now."""
        with self._lock:
            if id(block) in self._lent:
                return False
            self._lent.add(id(block))
            kept = [other for other in self._free if other is not block]
            if len(kept) == len(self._free):
                self._foreign.add(id(block))
            self._free = kept
            return True

    def release(self, block: torch.Tensor) -> None:
        """Give a block back."""
        with self._lock:
            self._lent.discard(id(block))
            if id(block) in self._foreign:
                self._foreign.discard(id(block))
                return
            self._free.append(block)
            self._free.sort(key=lambda other: other.numel())

    def clear(self) -> None:
        """Free all blocks that are not lent."""
        with self._lock:
            self._drop_free()


def _advise_huge_pages(block: torch.Tensor) -> None:
    if block.numel() < 2 * _HUGE:
        return
    name = ctypes.util.find_library("c")
    if name is None:
        return
    start = -(-block.data_ptr() // _HUGE) * _HUGE
    length = (block.data_ptr() + block.numel() - start) // _HUGE * _HUGE
    # Advice only: where the system does not know it, pages stay small.
    ctypes.CDLL(name).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)


POOL = ArenaPool()
