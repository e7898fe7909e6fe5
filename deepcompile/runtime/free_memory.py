"""How much memory a device has, and how much is free: of a GPU, or of this process's group."""

from __future__ import annotations

from pathlib import Path

import torch

_GROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def total_memory(device: torch.device) -> int:
    """Bytes of a device; on a CPU the limit of the control group, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    limit = _read(_GROUP / "memory.max") or _read(_GROUP / "memory/memory.limit_in_bytes")
    machine = _meminfo("MemTotal")
    return min(limit or _UNLIMITED, machine or _UNLIMITED)


def free_memory(device: torch.device) -> int:
    """Bytes that could be taken now; what torch's own allocator has free on a GPU counts."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = _meminfo("MemAvailable") or total_memory(device)
    used = _read(_GROUP / "memory.current") or _read(_GROUP / "memory/memory.usage_in_bytes")
    if used is None:
        return free
    return max(0, min(free, total_memory(device) - used))


def _read(path: Path) -> int | None:
    """The number in a file; None without one, as where the group has no limit ("max")."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _meminfo(name: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
