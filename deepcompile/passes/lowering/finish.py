"""From instructions to a kernel: stages, sizes, and checks that it may store where it does."""

from __future__ import annotations

import itertools

from ...ir.index import ONE, Index, product
from ...ir.nest import (
    Accumulate,
    Apply,
    Axis,
    Buffer,
    Cast,
    Check,
    Const,
    IndexValue,
    InRange,
    Instr,
    Kernel,
    Load,
    Rand,
    Store,
    Valued,
    index_values,
    operands,
)
from ...ir.stages import index_names, place
from .instructions import Instructions, Phase
from .refusals import CannotFuse


def finish_kernel(
    name: str, axes: tuple[Axis, ...], buffers: tuple[Buffer, ...], code: Instructions
) -> Kernel:
    """The kernel `name` of these instructions, placed in stages.

    Raises:
        CannotFuse: when a store needs a value too early, or a buffer written in place is read at
            another place or too late.
    """
    order = _repeat_after_rows(code, axes)
    sizes = _sizes(axes, buffers, order)
    kernel = Kernel(name, axes, buffers, sizes, place(order, code.reduced))
    _check_in_place(kernel)
    return kernel


def _repeat_after_rows(code: Instructions, axes: tuple[Axis, ...]) -> list[Instr]:
    """The instructions, uniform values that are read after all rows repeated there."""
    copies: dict[tuple[int, Phase], int] = {}
    new_ids = itertools.count(len(code.values))
    order: list[Instr] = []

    def copy(value: int, phase: Phase) -> int:
        if code.phases[value] != "point":
            return value
        known = copies.get((value, phase))
        if known is not None:
            return known
        original = code.values[value]
        renamed = {read: copy(read, phase) for read in operands(original)}
        id = next(new_ids)
        order.append(_renamed(original, id, renamed))
        copies[(value, phase)] = id
        return id

    for instr in code.order:
        if isinstance(instr, Store):
            phase = _phase_of_store(instr, code, axes)
        elif isinstance(instr, Accumulate):
            phase = "point"
        else:
            phase = code.phases[instr.id]
        if phase == "point":
            order.append(instr)
            continue
        renamed = {read: copy(read, phase) for read in operands(instr)}
        if isinstance(instr, Store):
            value = renamed[instr.value]
            order.append(Store(instr.buffer, _rename_index(instr.index, renamed), value))
        else:
            order.append(_renamed(instr, instr.id, renamed))
    return order


def _phase_of_store(store: Store, code: Instructions, axes: tuple[Axis, ...]) -> Phase:
    names = store.index.names()
    phase = code.phases[store.value]
    if phase != "point":
        if names & code.parallel:
            raise CannotFuse("it needs a value that is complete only after all rows")
        return "columns" if code.loops[store.value] or names & code.reduced else "total"
    if not names & code.parallel and code.parallel:
        rows = product([axis.extent for axis in axes if axis.kind == "parallel"])
        if rows != ONE:
            raise CannotFuse("a value that is the same in all rows is stored once only")
    return phase


def _sizes(
    axes: tuple[Axis, ...], buffers: tuple[Buffer, ...], order: list[Instr]
) -> tuple[str, ...]:
    """The size symbols in extents, shapes and index expressions."""
    used: set[str] = set()
    for axis in axes:
        used |= axis.extent.names()
    for buffer in buffers:
        for size in buffer.shape:
            used |= size.names()
    for instr in order:
        used |= index_names(instr)
    values = {name for name in used if name[0] == "v" and name[1:].isdigit()}
    return tuple(sorted(used - values - {axis.name for axis in axes}))


def _rename_index(index: Index, renamed: dict[int, int]) -> Index:
    if not index_values(index):
        return index
    values = {f"v{old}": Index.of(f"v{new}") for old, new in renamed.items()}
    return index.substitute(values, {})


def _renamed(instr: Valued, id: int, renamed: dict[int, int]) -> Valued:
    match instr:
        case Apply(dtype=dtype, op=op, args=args):
            return Apply(id, dtype, op, tuple(renamed.get(a, a) for a in args))
        case Cast(dtype=dtype, arg=arg, to=to):
            return Cast(id, dtype, renamed.get(arg, arg), to)
        case Load(dtype=dtype, buffer=buffer, index=index, mask=mask):
            mask = None if mask is None else renamed.get(mask, mask)
            return Load(id, dtype, buffer, _rename_index(index, renamed), mask)
        case IndexValue(dtype=dtype, index=index):
            return IndexValue(id, dtype, _rename_index(index, renamed))
        case InRange(dtype=dtype, index=index, low=low, high=high):
            return InRange(id, dtype, _rename_index(index, renamed), low, high)
        case Rand(dtype=dtype, kind=kind, seed=seed, offset=offset):
            return Rand(id, dtype, kind, renamed.get(seed, seed), _rename_index(offset, renamed))
        case Check(dtype=dtype, arg=arg):
            return Check(id, dtype, renamed.get(arg, arg))
        case Const(dtype=dtype, value=value):
            return Const(id, dtype, value)
    raise CannotFuse("it needs a value that is complete only after all rows")


def _check_in_place(kernel: Kernel) -> None:
    written: dict[str, tuple[Index, int]] = {}
    for number, stage in enumerate(kernel.stages):
        for instr in stage.body:
            if isinstance(instr, Store) and kernel.buffer(instr.buffer).role == "inout":
                if instr.buffer in written:
                    raise CannotFuse("a buffer is written in place twice")
                written[instr.buffer] = (instr.index, number)
    for number, stage in enumerate(kernel.stages):
        for instr in stage.body:
            if isinstance(instr, Load) and instr.buffer in written:
                index, last = written[instr.buffer]
                if instr.index != index or number > last:
                    raise CannotFuse("a buffer written in place is read elsewhere in this kernel")
