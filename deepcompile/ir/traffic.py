"""What a kernel costs at given sizes: bytes it must move and scalar operations it does.

Bytes count each distinct element once, as if a cache held all that is used again: of a buffer, the
elements that its distinct index expressions can reach, at most the whole buffer. Operations count
each instruction at every position of its stage, weighted by the op table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from .index import Index
from .monoids import MONOIDS
from .nest import Accumulate, Apply, Instr, Kernel, Load, Rand, Reduce, Stage, Store, operands
from .ops import OPS

BYTES = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f8e4m3": 1,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u8": 1,
    "b1": 1,
}


@dataclass(frozen=True)
class Traffic:
    """Bytes read and written, and scalar operations (in units of one addition) of one run."""

    bytes_read: int
    bytes_written: int
    operations: float

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written together."""
        return self.bytes_read + self.bytes_written


def traffic(kernel: Kernel, sizes: Mapping[str, int]) -> Traffic:
    """Bytes and operations of `kernel`, with each size symbol at its value in `sizes`."""
    extents = {axis.name: int(axis.extent.evaluate(sizes)) for axis in kernel.axes}
    moving: list[Instr] = []
    operations = 0.0
    for stage in kernel.stages:
        positions = prod(extents[name] for name in _stage_axes(kernel, stage))
        operations += sum(positions * _cost(instr) for instr in stage.body)
        if positions:
            moving += stage.body
    read, written = bytes_by_buffer(kernel, moving, sizes)
    return Traffic(sum(read.values()), sum(written.values()), operations)


def bytes_by_buffer(
    kernel: Kernel, instrs: Iterable[Instr], sizes: Mapping[str, int]
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Bytes read and written of each buffer when `instrs` run once at all of their positions."""
    extents = {axis.name: int(axis.extent.evaluate(sizes)) for axis in kernel.axes}
    varying = _varying_axes(kernel)
    read: dict[str, dict[Index, int]] = {}
    written: dict[str, dict[Index, int]] = {}
    for instr in instrs:
        if isinstance(instr, Load | Store):
            regions = read if isinstance(instr, Load) else written
            reached = prod(extents[name] for name in _index_axes(instr.index, varying))
            regions.setdefault(instr.buffer, {})[instr.index] = reached
    return _bytes(kernel, read, sizes), _bytes(kernel, written, sizes)


def _bytes(
    kernel: Kernel, regions: Mapping[str, Mapping[Index, int]], sizes: Mapping[str, int]
) -> Mapping[str, int]:
    found = {}
    for name, reached in regions.items():
        buffer = kernel.buffer(name)
        elements = prod(int(size.evaluate(sizes)) for size in buffer.shape)
        found[name] = min(elements, sum(reached.values())) * BYTES[buffer.dtype]
    return found


def _cost(instr: Instr) -> float:
    match instr:
        case Apply(op=op):
            return OPS[op].cost
        case Reduce(kind=kind) | Accumulate(kind=kind):
            return MONOIDS[kind].arity
        case Rand(kind=kind):
            return OPS[kind].cost
    return 0


def _stage_axes(kernel: Kernel, stage: Stage) -> tuple[str, ...]:
    kinds = {"row": ("parallel",), "loop": ("parallel", "reduced"), "columns": ("reduced",)}
    return tuple(axis.name for axis in kernel.axes if axis.kind in kinds.get(stage.kind, ()))


def _varying_axes(kernel: Kernel) -> dict[str, frozenset[str]]:
    """Name -> the axes it varies with, for every axis and value (a value under its name `vN`)."""
    varying = {axis.name: frozenset({axis.name}) for axis in kernel.axes}
    parallel = frozenset(axis.name for axis in kernel.parallel)
    reduced = frozenset(axis.name for axis in kernel.reduced)
    for instr in kernel.instructions():
        if isinstance(instr, Store):
            continue
        axes = frozenset[str]().union(*(varying[f"v{value}"] for value in operands(instr)))
        for field in ("index", "low", "high", "offset"):
            index = getattr(instr, field, None)
            if isinstance(index, Index):
                axes |= _index_axes(index, varying)
        gone = {Reduce: reduced, Accumulate: parallel}.get(type(instr), frozenset())
        varying[f"v{instr.id}"] = axes - gone
    return varying


def _index_axes(index: Index, varying: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*(varying.get(name, frozenset()) for name in index.names()))
