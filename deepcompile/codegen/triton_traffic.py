"""What a Triton kernel moves under its schedule, counted from the nest and the schedule.

Each launch, and each walk over a row longer than a tile, reads what it needs anew; within one of
them an element counts once, as in `ir.traffic`. What programs leave for each other (sums of
columns, states of shared rows) is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..ir.nest import Instr, Load, Stage
from ..ir.traffic import BYTES, bytes_by_buffer
from .triton_kernel import TritonKernel
from .triton_walks import walk_of


@dataclass(frozen=True)
class Moved:
    """Bytes moved by one run.

    Attributes:
        read: of each buffer.
        written: of each buffer.
        partials: of workspaces, written and read.
    """

    read: Mapping[str, int]
    written: Mapping[str, int]
    partials: int

    @property
    def total(self) -> int:
        """Bytes read and written of all buffers; without the workspaces."""
        return sum(self.read.values()) + sum(self.written.values())


def moved(kernel: TritonKernel, sizes: Mapping[str, int]) -> Moved:
    """Bytes that `kernel` moves with each size symbol at its value in `sizes`."""
    read: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for instrs in _parts(kernel):
        reads, writes = bytes_by_buffer(kernel.kernel, instrs, sizes)
        read.update(reads)
        written.update(writes)
    return Moved(read, written, _partials(kernel, sizes))


def _parts(kernel: TritonKernel) -> Iterator[list[Instr]]:
    """Instructions that share what they load: parts of the kernel that do not share it."""
    stages = kernel.kernel.stages
    after = [stage for stage in stages if stage.kind in ("total", "columns")]
    tiles = stages[: len(stages) - len(after)]
    if kernel.schedule.persistent:
        yield _instructions(tiles)
    else:
        yield _instructions([stage for stage in tiles if stage.kind == "row"])
        loops = [number for number, stage in enumerate(tiles) if stage.kind == "loop"]
        for number in loops:
            yield walk_of(kernel.kernel, number)
        if kernel.schedule.splits > 1:
            for number in loops[1:]:  # a launch of its own, which begins with the rows again
                rows = [stage for stage in tiles[:number] if stage.kind == "row"]
                yield [instr for instr in _instructions(rows) if isinstance(instr, Load)]
    yield _instructions(after)


def _instructions(stages: list[Stage] | tuple[Stage, ...]) -> list[Instr]:
    return [instr for stage in stages for instr in stage.body]


def _partials(kernel: TritonKernel, sizes: Mapping[str, int]) -> int:
    """Bytes of workspaces: written once and read once, but for sums that stay in memory."""
    schedule = kernel.schedule
    points = int(kernel.points.evaluate(sizes))
    rows = kernel.rows(sizes)
    tiles = -(-points // schedule.x_block)
    launches = sum(function.grid != "columns" for function in kernel.functions)
    total = 0
    for number, space in enumerate(kernel.workspaces):
        size = int(space.columns.evaluate(sizes)) * BYTES[space.dtype]
        if schedule.splits > 1 and number >= _accumulators(kernel):
            total += points * size * launches  # every later launch joins the states
        elif schedule.splits == 1 and not schedule.persistent and space.columns == kernel.row:
            total += size * (2 * tiles - rows) + size * rows
        else:
            total += 2 * size * rows
    return total


def _accumulators(kernel: TritonKernel) -> int:
    return sum(space.name.startswith("ws") for space in kernel.workspaces)
