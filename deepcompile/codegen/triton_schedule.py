"""How a kernel runs on a GPU, as data: tile, persistent or looped, warps, number of programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..ir.index import Divided, Index, product
from ..ir.nest import Accumulate, Kernel, Load, Store
from .schedule import dependence

TILE = 2048
"""Elements a program works on at once, where a row is shorter than that."""
LONGEST_ROW = 16384
"""The longest row that one tile holds."""
LONGEST_ACCUMULATED_ROW = 8192
"""The same for kernels that also hold sums of columns."""
LOOP_TILE = 2048
SPLIT_ROW = 32768
"""Rows from this length on are shared among programs when there are few of them."""
DEFAULT_HINT = 256
INT32_SPAN = 2**31


@dataclass(frozen=True)
class Gpu:
    """What a schedule needs to know of a device."""

    multiprocessors: int = 132
    capability: int = 90


@dataclass(frozen=True)
class TritonSchedule:
    """The decisions for one kernel.

    Attributes:
        x_block: points (positions of the parallel axes) of a tile; a power of two.
        r_block: positions of a row in a tile; a power of two, 1 without reduced axes.
        persistent: the tile holds a whole row; else stages loop over the row.
        warps: warps of a program.
        programs: with accumulators, how many programs share the points, at most; else 0: one
            program a tile.
        splits: programs that share one row, for few long rows; then one launch for each stage over
            the row, and the next joins what they found.
        wide: indices need 64 bits.
        contracts: a product and a sum may become one operation, which rounds once.
    """

    x_block: int
    r_block: int
    persistent: bool
    warps: int
    programs: int = 0
    wide: bool = False
    splits: int = 1
    contracts: bool = True


def plan_triton(
    kernel: Kernel, hints: Mapping[str, int] | None = None, gpu: Gpu | None = None
) -> TritonSchedule:
    """The schedule by rule; `hints` are likely values of the kernel's sizes."""
    gpu = gpu or Gpu()
    sizes = {name: (hints or {}).get(name, DEFAULT_HINT) for name in kernel.sizes}
    points = _extent(product([axis.extent for axis in kernel.parallel]), sizes)
    row = _extent(product([axis.extent for axis in kernel.reduced]), sizes)
    accumulates = any(isinstance(i, Accumulate) for i in kernel.instructions())
    wide = bool(kernel.sizes) or _spans(kernel, sizes) >= INT32_SPAN
    if not kernel.reduced:
        return _pointwise(kernel, points, wide, gpu)
    static = not any(axis.extent.constant() is None for axis in kernel.reduced)
    longest = LONGEST_ACCUMULATED_ROW if _sums_columns(kernel) else LONGEST_ROW
    across = _walks_across(kernel)
    width = power_of_two(row)
    if across:
        # Memory is contiguous along the points: take enough of them for whole cache lines.
        x_block = min(64, power_of_two(points))
        persistent = static and width * x_block <= 4096
        r_block = width if persistent else max(1, min(width, 4096 // x_block))
    else:
        persistent = static and width <= longest
        r_block = width if persistent else min(width, LOOP_TILE)
        x_block = max(1, min(TILE // r_block, power_of_two(points)))
    warps = max(1, min(16, x_block * r_block // 512))
    if not across and row >= SPLIT_ROW and 2 * points <= gpu.multiprocessors:
        splits = min(-(-row // LOOP_TILE), 2 * gpu.multiprocessors // max(points, 1))
        return TritonSchedule(1, LOOP_TILE, False, 4, wide=wide, splits=splits)
    programs = 0
    if accumulates:
        tiles = -(-points // x_block)
        programs = max(1, min(tiles, gpu.multiprocessors * (4 if warps <= 4 else 2)))
    return TritonSchedule(x_block, r_block, persistent, warps, programs, wide)


def _pointwise(kernel: Kernel, points: int, wide: bool, gpu: Gpu) -> TritonSchedule:
    x_block = 1024 if points >= 1024 * gpu.multiprocessors else 256
    # Each gathered address is 64 bits a point: with several, a thread holds one point.
    gathers = sum(isinstance(i, Load) and _is_gather(i.index) for i in kernel.instructions()) >= 3
    x_block = min(256 if gathers else x_block, power_of_two(points))
    programs = 0
    if any(isinstance(i, Accumulate) for i in kernel.instructions()):
        programs = max(1, min(-(-points // x_block), gpu.multiprocessors * 4))
    warps = max(1, x_block // 32 if gathers else min(4, x_block // 128))
    return TritonSchedule(x_block, 1, True, warps, programs, wide)


def _is_gather(index: Index) -> bool:
    """Whether a position depends on a value that was loaded."""
    return any(name.startswith("v") for name in index.names())


def leaner(schedule: TritonSchedule) -> TritonSchedule | None:
    """A schedule that needs fewer registers, for a kernel that spilled under this one; None: none.

    First rows loop over tiles instead of being held in one; then the tiles get smaller.
    """
    width = schedule.r_block
    if schedule.splits > 1:
        return replace(schedule, r_block=width // 2) if width > 256 else None
    if schedule.persistent and width > LOOP_TILE:
        return replace(schedule, persistent=False, r_block=LOOP_TILE, x_block=1, warps=8)
    if schedule.x_block * width // schedule.warps >= 128 and schedule.x_block > 1:
        return replace(schedule, x_block=schedule.x_block // 2)
    if not schedule.persistent and width > 256:
        return replace(schedule, r_block=width // 2)
    return None


def candidates(kernel: Kernel, schedule: TritonSchedule) -> list[TritonSchedule]:
    """Schedules worth timing for a kernel, that by rule first.

    Each differs in one decision: the tile's points, its part of a row, whether a row is held in one
    tile, warps, and how many programs or splits share the work.
    """
    found = [schedule]

    def add(**changes: Any) -> None:
        changed = replace(schedule, **changes)
        tile = changed.x_block * changed.r_block
        if tile >= 32 * changed.warps and changed not in found:
            found.append(changed)

    if not kernel.reduced:
        for x_block in (256, 512, 1024, 2048):
            for warps in (4, 8):
                add(x_block=x_block, warps=warps)
    else:
        for warps in (schedule.warps // 2, schedule.warps * 2):
            if 1 <= warps <= 32:
                add(warps=warps)
        for x_block in (schedule.x_block // 2, schedule.x_block * 2):
            if x_block:
                add(x_block=x_block)
        looped = not schedule.persistent or schedule.r_block >= 2 * LOOP_TILE
        if looped and schedule.x_block == 1:
            for r_block in (LOOP_TILE // 2, LOOP_TILE, 2 * LOOP_TILE):
                for warps in (4, 8):
                    add(persistent=False, r_block=r_block, warps=warps)
    if schedule.programs:
        add(programs=schedule.programs * 2)
        add(programs=max(1, schedule.programs // 2))
    if schedule.splits > 1:
        add(splits=schedule.splits * 2)
        add(splits=max(2, schedule.splits // 2))
    return found


def power_of_two(value: int) -> int:
    """The smallest power of two that is not less than `value`."""
    return 1 << max(0, value - 1).bit_length()


def _extent(extent: Index, sizes: Mapping[str, int]) -> int:
    return int(extent.evaluate(sizes))


def _spans(kernel: Kernel, sizes: Mapping[str, int]) -> int:
    """An upper bound of what indices and linear positions reach."""
    last = {axis.name: max(0, _extent(axis.extent, sizes) - 1) for axis in kernel.axes}
    largest = max(
        (_extent(product(list(buffer.shape)), sizes) for buffer in kernel.buffers), default=0
    )
    found = [largest]
    for axes in (kernel.parallel, kernel.reduced):
        found.append(_extent(product([axis.extent for axis in axes]), sizes))
    # A gathered position is one of its buffer.
    known = {**sizes, **last}
    for instr in kernel.instructions():
        if isinstance(instr, (Load, Store)):
            found.append(_reach(instr.index, known, largest))
    return max(found)


def _reach(index: Index, largest: Mapping[str, int], otherwise: int) -> int:
    total = 0
    for monomial, coefficient in index.terms:
        term = abs(coefficient)
        for atom in monomial:
            if isinstance(atom, Divided):
                term *= _reach(atom.numerator, largest, otherwise)
            else:
                term *= largest.get(atom, otherwise)
        total += term
    return total


def _walks_across(kernel: Kernel) -> bool:
    """Whether most memory is contiguous along a parallel axis rather than a reduced one."""
    if not kernel.parallel or not kernel.reduced:
        return False
    score = 0
    for instr in kernel.instructions():
        if not isinstance(instr, (Load, Store)):
            continue
        names = instr.index.names()
        if not names & {axis.name for axis in kernel.reduced}:
            continue
        for axis in kernel.axes:
            if axis.name in names and instr.index.coefficient(axis.name) == Index.of(1):
                score += 1 if axis.kind == "parallel" else -1
    return score > 0


def _sums_columns(kernel: Kernel) -> bool:
    """Whether the kernel holds a value for each position of a row over all of its points."""
    varies = dependence(kernel)
    reduced = {axis.name for axis in kernel.reduced}
    return any(
        isinstance(instr, Accumulate) and bool(varies[instr.arg] & reduced)
        for instr in kernel.instructions()
    )
