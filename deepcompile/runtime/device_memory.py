"""Memory of a device that programs share: arenas by stream, and what graphs of the user's read."""

from __future__ import annotations

import torch

from .arena import ArenaPool


class DeviceMemory:
    """What one driver holds for all programs on its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pools: dict[int, ArenaPool] = {}
        self._kept: list[torch.Tensor] = []

    def pool(self, stream: int) -> ArenaPool:
        """The memory for intermediates of what runs on a stream."""
        pool = self._pools.get(stream)
        if pool is None:
            pool = self._pools.setdefault(stream, ArenaPool(self._device))
        return pool

    def keep(self, tensor: torch.Tensor) -> None:
        """Keep a tensor that a graph of the user's reads: nobody says when that graph ends."""
        self._kept.append(tensor)
