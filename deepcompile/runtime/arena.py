"""One block of memory for the intermediates of a graph, laid out by `codegen.arena_plan`.

The block is shared by all programs of a process that do not run at the same time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch

from ..codegen.arena_plan import ALIGNMENT as ALIGNMENT
from ..codegen.arena_plan import ArenaPlan as ArenaPlan
from ..codegen.arena_plan import Lifetime as Lifetime
from ..codegen.arena_plan import plan_arena as plan_arena
from ..codegen.arena_plan import span as span

_HUGE = 2 << 20
_MADV_HUGEPAGE = 14


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
