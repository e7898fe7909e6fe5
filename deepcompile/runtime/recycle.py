"""Memory of outputs, used again once nobody holds them.

The C library gives every large block back to the system when it is freed and gets it anew, page
fault by page fault: for saved activations that costs more than the kernels that fill them. So
large outputs are tensors over storages that this pool also holds. A storage is handed out again
only when the pool's is the only reference left: no tensor, view, saved activation, array or storage
object of the user's can still see it.
"""

from __future__ import annotations

import functools
import os
import sys
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


class OwnStorage:
    """The memory of a new tensor, and whether others can see it.

    Tensors and views of others count as references to the storage; torch's storage object, the same
    for everyone, only as references to that object in Python.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._storage = tensor.untyped_storage()
        self.id: int = self._storage._cdata

    @property
    def nbytes(self) -> int:
        """Bytes, which a user may have changed."""
        return self._storage.nbytes()

    @property
    def address(self) -> int:
        """Where it begins, which a user may have changed."""
        return self._storage.data_ptr()

    def is_only_ours(self) -> bool:
        """Whether no tensor, view or storage object of others sees the memory."""
        if torch._C._storage_Use_Count(self.id) != 1:
            return False
        return sys.getrefcount(self._storage) == _references_when_alone()

    def tensor(
        self, dtype: torch.dtype, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> torch.Tensor:
        """A tensor over the memory; `offset` in elements."""
        made = torch.empty(0, dtype=dtype, device=self._storage.device)
        return made.set_(self._storage, offset, shape, strides)


@functools.cache
def _references_when_alone() -> int:
    """What `sys.getrefcount` says of a storage object that only an `OwnStorage` holds."""
    alone = OwnStorage(torch.empty(1))
    return sys.getrefcount(alone._storage)


class OutputPool:
    """Storages of large outputs by size."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = default_limit() if limit is None else limit
        self.held = 0
        self._lock = threading.Lock()
        self._by_size: dict[int, list[OwnStorage]] = {}

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, nbytes: int
    ) -> torch.Tensor:
        """An uninitialised tensor that nobody else can see; `nbytes` is what its storage needs."""
        if nbytes < SMALLEST:
            return torch.empty_strided(shape, strides, dtype=dtype)
        with self._lock:
            for storage in self._by_size.get(nbytes, ()):
                if storage.is_only_ours() and storage.nbytes == nbytes:
                    return storage.tensor(dtype, 0, shape, strides)
        fresh = torch.empty_strided(shape, strides, dtype=dtype)
        self._keep(OwnStorage(fresh), nbytes)
        return fresh

    def _keep(self, storage: OwnStorage, nbytes: int) -> None:
        if storage.nbytes != nbytes:
            return
        with self._lock:
            if self.held + nbytes > self.limit:
                self._drop_idle()
            if self.held + nbytes <= self.limit:
                self._by_size.setdefault(nbytes, []).append(storage)
                self.held += nbytes

    def _drop_idle(self) -> None:
        for size, storages in list(self._by_size.items()):
            kept = [storage for storage in storages if not storage.is_only_ours()]
            self.held -= size * (len(storages) - len(kept))
            if kept:
                self._by_size[size] = kept
            else:
                del self._by_size[size]

    def clear(self) -> None:
        """Give idle memory back to the system."""
        with self._lock:
            self._drop_idle()


OUTPUTS = OutputPool()
