"""Memory of outputs, used again once nobody holds them.

The C library gives every large block back to the system when it is freed and gets it anew, page
fault by page fault: for saved activations that costs more than the kernels that fill them. So
large outputs are tensors over storages that this pool also holds. A storage is handed out again
only when the pool's is the only reference left: no tensor, view, saved activation or array of
the user's can still see it.
"""

from __future__ import annotations

import os
import threading

import torch

SMALLEST = 1 << 20
"""Smaller outputs come from the C library's heap, which reuses them well."""


def default_limit() -> int:
    """Bytes the pool may hold, lent or idle: an eighth of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
    except (ValueError, OSError):
        return 1 << 30


class OutputPool:
    """Storages of large outputs by size."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = default_limit() if limit is None else limit
        self.held = 0
        self._lock = threading.Lock()
        self._by_size: dict[int, list[torch.UntypedStorage]] = {}

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, nbytes: int
    ) -> torch.Tensor:
        """An uninitialised tensor that nobody else can see; `nbytes` is what its storage needs."""
        if nbytes < SMALLEST:
            return torch.empty_strided(shape, strides, dtype=dtype)
        with self._lock:
            for storage in self._by_size.get(nbytes, ()):
                if _is_only_ours(storage) and storage.nbytes() == nbytes:
                    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, strides)
        fresh = torch.empty_strided(shape, strides, dtype=dtype)
        self._keep(fresh.untyped_storage(), nbytes)
        return fresh

    def _keep(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        if storage.nbytes() != nbytes:
            return
        with self._lock:
            if self.held + nbytes > self.limit:
                self._drop_idle()
            if self.held + nbytes <= self.limit:
                self._by_size.setdefault(nbytes, []).append(storage)
                self.held += nbytes

    def _drop_idle(self) -> None:
        for size, storages in list(self._by_size.items()):
            kept = [storage for storage in storages if not _is_only_ours(storage)]
            self.held -= size * (len(storages) - len(kept))
            if kept:
                self._by_size[size] = kept
            else:
                del self._by_size[size]

    def clear(self) -> None:
        """Give idle memory back to the system."""
        with self._lock:
            self._drop_idle()


def _is_only_ours(storage: torch.UntypedStorage) -> bool:
    return torch._C._storage_Use_Count(storage._cdata) == 1


OUTPUTS = OutputPool()
