"""Merging neighbouring axes that every index walks as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .index import ONE, ZERO, Index
from .nest import Axis, IndexValue, InRange, Instr, Kernel, Load, Rand, Stage, Store


def _indices(instr: Instr) -> Iterator[Index]:
    if isinstance(instr, (Load, Store, IndexValue, InRange)):
        yield instr.index
    if isinstance(instr, InRange):
        yield instr.low
        yield instr.high
    if isinstance(instr, Rand):
        yield instr.offset


def _change(instr: Instr, values: dict[str, Index]) -> Instr:
    match instr:
        case Load() | Store() | IndexValue():
            return replace(instr, index=instr.index.substitute(values, {}))
        case InRange():
            return replace(
                instr,
                index=instr.index.substitute(values, {}),
                low=instr.low.substitute(values, {}),
                high=instr.high.substitute(values, {}),
            )
        case Rand():
            return replace(instr, offset=instr.offset.substitute(values, {}))
    return instr


def _walks_as_one(kernel: Kernel, outer: Axis, inner: Axis) -> bool:
    for instr in kernel.instructions():
        for index in _indices(instr):
            names = index.names()
            if outer.name not in names and inner.name not in names:
                continue
            a, b = index.coefficient(outer.name), index.coefficient(inner.name)
            if a is None or b is None or a != b * inner.extent:
                return False
    return True


def collapse_axes(kernel: Kernel) -> Kernel:
    """The same kernel with as few axes as its indices allow, and no axes of extent 1.

    Axes are renamed p0, p1, ... and r0, r1, ... from the outermost.
    """
    axes = [axis for axis in kernel.axes if axis.extent != ONE]
    dropped = {axis.name: ZERO for axis in kernel.axes if axis.extent == ONE}
    if dropped:
        kernel = _rewrite(kernel, axes, dropped)
    merged: list[Axis] = []
    for axis in axes:
        if merged and merged[-1].kind == axis.kind and _walks_as_one(kernel, merged[-1], axis):
            outer = merged.pop()
            joined = Axis(axis.name, outer.extent * axis.extent, axis.kind)
            # Every index has both or neither, as outer*(b*extent) + inner*b: inner alone remains.
            kernel = _rewrite(kernel, kernel.axes, {outer.name: ZERO})
            merged.append(joined)
            continue
        merged.append(axis)
    values: dict[str, Index] = {}
    final: list[Axis] = []
    counts = {"parallel": 0, "reduced": 0}
    for axis in merged:
        name = f"{axis.kind[0]}{counts[axis.kind]}"
        counts[axis.kind] += 1
        values[axis.name] = Index.of(name)
        final.append(Axis(name, axis.extent, axis.kind))
    if all(axis.name == new.name for axis, new in zip(merged, final, strict=True)):
        values = {}
    return _rewrite(kernel, final, values)


def _rewrite(
    kernel: Kernel, axes: list[Axis] | tuple[Axis, ...], values: dict[str, Index]
) -> Kernel:
    stages = kernel.stages
    if values:
        stages = tuple(
            Stage(stage.kind, tuple(_change(instr, values) for instr in stage.body))
            for stage in stages
        )
    return Kernel(kernel.name, tuple(axes), kernel.buffers, kernel.sizes, stages)
