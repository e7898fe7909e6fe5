"""Where the intermediates of a program lie in one block of memory, by lifetime.

Offsets are chosen greedily, largest buffer first, at the lowest place free over the buffer's
whole life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes: each buffer begins at a multiple of it, one line of the cache."""


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
