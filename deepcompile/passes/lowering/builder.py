"""Builds one kernel by asking, from its stores backwards, for values at positions.

`Builder.value(node, position)` is the value of a graph node at a position (one `Index` a dim).
Views rewrite the position, scalar rules ask for their operands, tensors in memory become loads,
and reductions become row values or accumulators. Whatever the groups of the fusion pass are, the
result is right by construction: a value is a pure function of its position, so asking at a new
position computes it anew. Only a reduction can be asked for at a place where one kernel cannot
have it: `CannotFuse`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch.fx import Node

from ...ir.index import ONE, ZERO, Index, contiguous_strides, in_bounds, out_of_bounds, product
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
    Reduce,
    Store,
    Valued,
    index_values,
    operands,
)
from ...ir.ops import REGISTER_OF
from ...ir.stages import place
from .shapes import Facts, TensorInfo
from .views import Position, is_view, view_position, view_source

Phase = Literal["point", "columns", "total"]


class CannotFuse(Exception):
    """These nodes cannot be one kernel; the message is the reason shown to the user."""


class Builder:
    """One kernel in the making.

    Args:
        facts: shapes of graph nodes.
        parallel, reduced: axes as (name, extent), outermost first.
        in_memory: node -> the node whose buffer the kernel reads it from, else None.
        lower: the rule that computes a node at a position (`rules.lower`).
        round_always: round to the logical dtype after every op, as eager does.

    Attributes:
        reductions: reduction node -> the position of its operand, in the axes of this kernel.
    """

    def __init__(
        self,
        facts: Facts,
        parallel: list[tuple[str, Index]],
        reduced: list[tuple[str, Index]],
        in_memory: Callable[[Node], Node | None],
        lower: Callable[[Builder, Node, Position], int],
        *,
        round_always: bool = False,
    ) -> None:
        self.facts = facts
        self.parallel = parallel
        self.reduced = reduced
        self.extents: dict[str, Index] = dict(parallel + reduced)
        self.round_always = round_always
        self.reductions: dict[Node, Position] = {}
        self._in_memory = in_memory
        self._lower = lower
        self._instrs: list[Instr] = []
        self._ids: dict[Instr, int] = {}
        self._defs: list[Valued] = []
        self._phase: list[Phase] = []
        self._loops: list[bool] = []
        self._whole_values: dict[tuple[Node, Position], int] = {}
        self._values = self._whole_values
        self._narrow: dict[int, str] = {}
        self._buffers: dict[Node, Buffer] = {}
        self._stored: dict[Node, str] = {}
        self._reduced_names = frozenset(name for name, _ in reduced)
        self._parallel_names = frozenset(name for name, _ in parallel)

    # -- values ---------------------------------------------------------------------------------

    def value(self, node: Node, position: Position) -> int:
        """The value of `node` at `position`, in the register dtype of the node's dtype."""
        key = (node, position)
        if self._mask is not None and node in self.reductions:
            return self._unmasked(node, position)
        known = self._values.get(key)
        if known is not None:
            return known
        base = self._in_memory(node)
        if base is not None:
            result = self._load(node, base, position)
        elif is_view(node):
            source = view_source(node)
            inner = view_position(node, position, self.facts, self.extents)
            result = self.value(source, inner)
        else:
            result = self._lower(self, node, position)
            if self.round_always:
                result = self.rounded(result, self.facts[node].dtype)
        self._values[key] = result
        return result

    def _unmasked(self, node: Node, position: Position) -> int:
        """A reduction runs over its whole row whatever mask the reader is under."""
        mask, values = self._mask, self._values
        self._mask, self._values = None, self._whole_values
        try:
            return self.value(node, position)
        finally:
            self._mask, self._values = mask, values

    def rounded(self, value: int, dtype: str) -> int:
        """`value` rounded to storage dtype `dtype` (a no-op when it is known to be already)."""
        register = REGISTER_OF[dtype]
        if register == dtype or self._narrow.get(value) == dtype:
            return value
        result = self.cast(value, dtype)
        self._narrow[result] = dtype
        return result

    def dtype(self, value: int) -> str:
        """The register dtype of a value."""
        return self._defs[value].dtype

    def const(self, value: float | int | bool, dtype: str) -> int:
        """A literal of register dtype `dtype`."""
        if dtype in ("f32", "f64"):
            value = float(value)
        elif dtype == "b1":
            value = bool(value)
        else:
            value = int(value)
        return self._emit(lambda id: Const(id, dtype, value), (), ("const", dtype, repr(value)))

    def apply(self, op: str, *args: int, dtype: str | None = None) -> int:
        """A scalar op; the result has the dtype of the first argument unless `dtype` is given."""
        out = dtype or self.dtype(args[0])
        return self._emit(lambda id: Apply(id, out, op, args), args)

    def cast(self, value: int, to: str) -> int:
        """Convert to storage dtype `to`, rounding when it is narrower than its register."""
        register = REGISTER_OF[to]
        if register == to and self.dtype(value) == register:
            return value
        result = self._emit(lambda id: Cast(id, register, value, to), (value,))
        if register != to:
            self._narrow[result] = to
        return result

    def index(self, index: Index) -> int:
        """The value of an index expression as i64."""
        constant = index.constant()
        if constant is not None:
            return self.const(constant, "i64")
        if len(index.terms) == 1 and index.terms[0][1] == 1 and len(index.terms[0][0]) == 1:
            atom = index.terms[0][0][0]
            if isinstance(atom, str) and atom[0] == "v" and atom[1:].isdigit():
                return int(atom[1:])
        return self._emit(
            lambda id: IndexValue(id, "i64", index), index_values(index), names=index.names()
        )

    def in_range(self, index: Index, low: Index, high: Index) -> int:
        """b1: `low <= index < high`, folded when provable."""
        if in_bounds(index, low, high, self.extents):
            return self.const(True, "b1")
        if out_of_bounds(index, low, high, self.extents):
            return self.const(False, "b1")
        return self._emit(
            lambda id: InRange(id, "b1", index, low, high),
            index_values(index),
            names=index.names(),
        )

    def check(self, value: int) -> int:
        """b1 `value`, with the call failing where it is false (and read at all)."""
        if self.literal(value) is True:
            return value
        if self._mask is not None:
            ignored = self.apply("logical_not", self._mask)
            value = self.apply("logical_or", ignored, value)
        return self._emit(lambda id: Check(id, "b1", value), (value,))

    def as_index(self, value: int) -> Index:
        """An i64 value as part of an address."""
        definition = self._defs[value]
        if isinstance(definition, IndexValue):
            return definition.index
        if isinstance(definition, Const):
            return Index.of(int(definition.value))
        return Index.of(f"v{value}")

    def literal(self, value: int) -> float | int | bool | None:
        """The literal behind a value, if it is one."""
        definition = self._defs[value]
        return definition.value if isinstance(definition, Const) else None

    def masked(self, mask: int, make: Callable[[], int], otherwise: int | None = None) -> int:
        """`make()` where `mask`, else `otherwise` (0); its loads happen only under the mask."""
        known = self.literal(mask)
        if known is True:
            return make()
        outer_mask, outer_values = self._mask, self._values
        both = mask if outer_mask is None else self.apply("logical_and", outer_mask, mask)
        self._mask, self._values = both, {}
        try:
            if known is False:
                raise CannotFuse("a branch that is never taken")
            inside = make()
        finally:
            self._mask, self._values = outer_mask, outer_values
        if otherwise is None:
            otherwise = self.const(0, self.dtype(inside))
        return self.apply("where", mask, inside, otherwise, dtype=self.dtype(inside))

    _mask: int | None = None

    def rand(self, kind: str, seed: int, offset: Index) -> int:
        """A random f32 of philox(seed, offset)."""
        return self._emit(
            lambda id: Rand(id, "f32", kind, seed, offset), (seed,), names=offset.names()
        )

    def reduce(
        self, kind: str, part: str, value: int, register: str, covered: frozenset[str]
    ) -> int:
        """The reduction of `value` over the axes `covered`.

        Raises:
            CannotFuse: when the axes are neither all reduced, all parallel, nor all axes.
        """
        if not covered:
            return self._single(kind, part, value, register)
        over_rows = covered == self._reduced_names and bool(covered)
        over_points = covered == self._parallel_names and bool(covered)
        if covered == self._reduced_names | self._parallel_names and (
            over_rows or over_points or covered
        ):
            if not self._reduced_names:
                return self._accumulate(kind, part, value, register)
            if not self._parallel_names:
                return self._reduce_row(kind, part, value, register)
            if kind not in SPLITTABLE:
                raise CannotFuse(f"{kind} over all axes does not split")
            inner = self._reduce_row(kind, part, value, register)
            return self._accumulate(kind, part, inner, register)
        if over_rows:
            return self._reduce_row(kind, part, value, register)
        if over_points:
            return self._accumulate(kind, part, value, register)
        raise CannotFuse("it reduces other axes than the rows of this kernel")

    def _single(self, kind: str, part: str, value: int, register: str) -> int:
        """The reduction of one value."""
        if kind == "welford" and part == "m2":
            away = self.apply("sub", value, value)
            return self.apply("mul", away, away)
        if kind == "lse" and part == "sum":
            infinite = self.apply("isinf", value, dtype="b1")
            zero = self.const(0.0, register)
            shift = self.apply("where", infinite, zero, value, dtype=register)
            return self.apply("exp", self.apply("sub", value, shift))
        return value

    def _reduce_row(self, kind: str, part: str, value: int, register: str) -> int:
        if self._phase[value] != "point":
            raise CannotFuse("a reduction of a value that is complete only after all rows")
        return self._emit(lambda id: Reduce(id, register, kind, part, value), (value,), loop=False)

    def _accumulate(self, kind: str, part: str, value: int, register: str) -> int:
        if kind not in SPLITTABLE:
            raise CannotFuse(f"{kind} does not split over rows")
        if self._phase[value] != "point":
            raise CannotFuse("a reduction of a value that is complete only after all rows")
        if self._mask is not None:
            raise CannotFuse("a reduction over all rows under a mask")
        phase: Phase = "columns" if self._loops[value] else "total"
        return self._emit(
            lambda id: Accumulate(id, register, kind, value),
            (value,),
            loop=phase == "columns",
            phase=phase,
        )

    # -- memory ---------------------------------------------------------------------------------

    def _load(self, node: Node, base: Node, position: Position) -> int:
        info, root = self.facts[node], self.facts[base]
        index = info.offset - root.offset
        for at, stride in zip(position, info.strides, strict=True):
            index = index + at * stride
        buffer = self.buffer(base)
        register = REGISTER_OF[info.dtype]
        if info.dtype != root.dtype:
            raise CannotFuse("a view that changes the dtype")
        mask = self._mask
        reads = index_values(index) + (() if mask is None else (mask,))
        result = self._emit(
            lambda id: Load(id, register, buffer.name, index, mask), reads, names=index.names()
        )
        if register != info.dtype:
            self._narrow[result] = info.dtype
        return result

    def buffer(self, base: Node) -> Buffer:
        """The buffer through which the kernel reads or writes the memory of `base`."""
        buffer = self._buffers.get(base)
        if buffer is None:
            info = self.facts[base]
            buffer = Buffer(f"b{len(self._buffers)}", info.dtype, info.shape, "in")
            self._buffers[base] = buffer
        return buffer

    def store(self, node: Node, position: Position, into: Node | None = None) -> None:
        """Compute `node` at `position` and store it to its own buffer, or to that of `into`."""
        target = into or node
        value = self.value(node, position)
        info = self.facts[target]
        index = ZERO
        for at, stride in zip(position, _strides_to_write(info), strict=True):
            index = index + at * stride
        if ZERO in info.shape and not any(self.extents.get(n) == ZERO for n in index.names()):
            raise CannotFuse("nothing must be stored, but the loops around the store are not empty")
        value = (
            self.cast(value, info.dtype) if self.dtype(value) != REGISTER_OF[info.dtype] else value
        )
        buffer = self.buffer(target)
        self._stored[target] = buffer.name
        self._instrs.append(Store(buffer.name, index, value))

    def buffers(self) -> list[tuple[Node, str, str]]:
        """(base node, buffer name, role) in the order of the kernel's arguments."""
        result = []
        loaded = {i.buffer for i in self._instrs if isinstance(i, Load)}
        for base, buffer in self._buffers.items():
            stored = base in self._stored
            role = "in" if not stored else "inout" if buffer.name in loaded else "out"
            result.append((base, buffer.name, role))
        return result

    # -- the kernel -----------------------------------------------------------------------------

    def _emit(
        self,
        make: Callable[[int], Valued],
        reads: tuple[int, ...],
        key: object = None,
        *,
        names: frozenset[str] = frozenset(),
        loop: bool | None = None,
        phase: Phase | None = None,
    ) -> int:
        probe = make(-1)
        # Constants are keyed by their text: 0.0, -0.0 and False are equal in Python.
        known = self._ids.get(key or probe)  # type: ignore[call-overload]
        if known is not None:
            return known
        id = len(self._defs)
        instr = make(id)
        merged: Phase = "point"
        for read in reads:
            if self._phase[read] != "point":
                if merged == "columns" or self._phase[read] == "columns":
                    merged = "columns"
                else:
                    merged = "total"
        in_loop = bool(names & self._reduced_names) or any(self._loops[read] for read in reads)
        if phase is None and merged != "point":
            if names & self._parallel_names or any(
                self._phase[read] == "point" and self._uses_parallel(read) for read in reads
            ):
                raise CannotFuse("it needs a value that is complete only after all rows")
            if in_loop:
                merged = "columns"
        self._ids[key or probe] = id  # type: ignore[index]
        self._defs.append(instr)
        self._instrs.append(instr)
        self._phase.append(phase or merged)
        self._loops.append(in_loop if loop is None else loop)
        return id

    def _uses_parallel(self, value: int) -> bool:
        seen, stack = set(), [value]
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            instr = self._defs[current]
            if isinstance(instr, Accumulate):
                continue
            index = getattr(instr, "index", None) or getattr(instr, "offset", None)
            if index is not None and index.names() & self._parallel_names:
                return True
            stack.extend(operands(instr))
        return False

    def finish(self, name: str) -> Kernel:
        """The kernel, its instructions placed in stages.

        Raises:
            CannotFuse: when a buffer written in place is read at another place or too late.
        """
        phases: list[Phase] = list(self._phase)
        self._pull_constants_into_finish(phases)
        for instr in self._instrs:
            if isinstance(instr, Store):
                self._store_place(instr)
        stages = place(self._instrs, self._reduced_names)
        axes = [Axis(name, extent, "parallel") for name, extent in self.parallel]
        axes += [Axis(name, extent, "reduced") for name, extent in self.reduced]
        buffers = []
        for base, buffer_name, role in self.buffers():
            info = self.facts[base]
            buffers.append(Buffer(buffer_name, info.dtype, info.shape, role))  # type: ignore[arg-type]
        kernel = Kernel(name, tuple(axes), tuple(buffers), self._sizes(axes), stages)
        _check_in_place(kernel)
        return kernel

    def _pull_constants_into_finish(self, phases: list[Phase]) -> None:
        """Uniform values that finish stages use are repeated there, under new ids."""
        copies: dict[tuple[int, Phase], int] = {}

        def copy(value: int, phase: Phase) -> int:
            if phases[value] != "point" or isinstance(self._defs[value], Accumulate):
                return value
            known = copies.get((value, phase))
            if known is not None:
                return known
            renamed = {read: copy(read, phase) for read in operands(self._defs[value])}
            id = len(self._defs)
            fresh = _renamed(self._defs[value], id, renamed)
            self._defs.append(fresh)
            phases.append(phase)
            self._phase.append(phase)
            self._loops.append(self._loops[value])
            order.append(fresh)
            copies[(value, phase)] = id
            return id

        order: list[Instr] = []
        for instr in self._instrs:
            if isinstance(instr, Store):
                phase = self._store_place(instr)[0]
            elif isinstance(instr, Accumulate):
                phase = "point"
            else:
                phase = phases[instr.id]
            if phase == "point":
                order.append(instr)
                continue
            renamed = {read: copy(read, phase) for read in operands(instr)}
            if isinstance(instr, Store):
                value = renamed[instr.value]
                order.append(Store(instr.buffer, _rename_index(instr.index, renamed), value))
            else:
                fresh = _renamed(instr, instr.id, renamed)
                self._defs[instr.id] = fresh
                order.append(fresh)
        self._instrs = order

    def _store_place(self, store: Store) -> tuple[Phase, bool]:
        names = store.index.names()
        phase = self._phase[store.value]
        loop = self._loops[store.value] or bool(names & self._reduced_names)
        if phase != "point":
            if names & self._parallel_names:
                raise CannotFuse("it needs a value that is complete only after all rows")
            return ("columns" if loop else "total"), loop
        if not names & self._parallel_names and self._parallel_names:
            extents = [extent for _, extent in self.parallel]
            if product(extents) != ONE:
                raise CannotFuse("a value that is the same in all rows is stored once only")
        return phase, loop

    def _sizes(self, axes: list[Axis]) -> tuple[str, ...]:
        used: set[str] = set()
        for axis in axes:
            used |= axis.extent.names()
        for base in self._buffers:
            for size in self.facts[base].shape:
                used |= size.names()
        for instr in self._instrs:
            for attribute in ("index", "offset", "low", "high"):
                index = getattr(instr, attribute, None)
                if isinstance(index, Index):
                    used |= index.names()
        values = {name for name in used if name[0] == "v" and name[1:].isdigit()}
        return tuple(sorted(used - values - self._parallel_names - self._reduced_names))


def _strides_to_write(info: TensorInfo) -> tuple[Index, ...]:
    """Strides that tell positions apart; those of a tensor without elements may all be 0."""
    if ZERO not in info.shape:
        return info.strides
    return contiguous_strides(tuple(ONE if size == ZERO else size for size in info.shape))


SPLITTABLE = frozenset({"sum", "prod", "max", "min", "any", "all"})


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
