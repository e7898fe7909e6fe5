"""Builds one kernel by asking, from its stores backwards, for values at positions.

`Builder.value(node, position)` is the value of a graph node at a position (one `Index` a dim).
Views rewrite the position, scalar rules ask for their operands, tensors in memory become loads,
and reductions become row values or accumulators. Whatever the groups of the fusion pass are, the
result is right by construction: a value is a pure function of its position, so asking at a new
position computes it anew. Only a reduction can be asked for at a place where one kernel cannot
have it: `CannotFuse`."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

from ...ir.index import ONE, ZERO, Index, contiguous_strides, in_bounds, out_of_bounds
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
    Kernel,
    Load,
    Rand,
    Reduce,
    Role,
    Store,
    index_values,
)
from ...ir.ops import REGISTER_OF
from .finish import finish_kernel
from .instructions import Instructions, Phase
from .refusals import CannotFuse
from .shapes import Facts, TensorInfo
from .views import Position, is_view, view_position, view_source


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
        code: the instructions so far.
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
        self.code = Instructions(
            frozenset(name for name, _ in parallel), frozenset(name for name, _ in reduced)
        )
        self._in_memory = in_memory
        self._lower = lower
        self._whole_values: dict[tuple[Node, Position], int] = {}
        self._values = self._whole_values
        self._narrow: dict[int, str] = {}
        self._buffers: dict[Node, Buffer] = {}
        self._stored: dict[Node, str] = {}

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
        return self.code.values[value].dtype

    def const(self, value: float | int | bool, dtype: str) -> int:
        """A literal of register dtype `dtype`."""
        if dtype in ("f32", "f64"):
            value = float(value)
        elif dtype == "b1":
            value = bool(value)
        else:
            value = int(value)
        return self.code.emit(lambda id: Const(id, dtype, value), (), ("const", dtype, repr(value)))

    def apply(self, op: str, *args: int, dtype: str | None = None) -> int:
        """A scalar op; the result has the dtype of the first argument unless `dtype` is given."""
        out = dtype or self.dtype(args[0])
        return self.code.emit(lambda id: Apply(id, out, op, args), args)

    def cast(self, value: int, to: str) -> int:
        """Convert to storage dtype `to`, rounding when it is narrower than its register."""
        register = REGISTER_OF[to]
        if register == to and self.dtype(value) == register:
            return value
        result = self.code.emit(lambda id: Cast(id, register, value, to), (value,))
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
        return self.code.emit(
            lambda id: IndexValue(id, "i64", index), index_values(index), names=index.names()
        )

    def in_range(self, index: Index, low: Index, high: Index) -> int:
        """b1: `low <= index < high`, folded when provable."""
        if in_bounds(index, low, high, self.extents):
            return self.const(True, "b1")
        if out_of_bounds(index, low, high, self.extents):
            return self.const(False, "b1")
        return self.code.emit(
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
        return self.code.emit(lambda id: Check(id, "b1", value), (value,))

    def as_index(self, value: int) -> Index:
        """An i64 value as part of an address."""
        definition = self.code.values[value]
        if isinstance(definition, IndexValue):
            return definition.index
        if isinstance(definition, Const):
            return Index.of(int(definition.value))
        return Index.of(f"v{value}")

    def literal(self, value: int) -> float | int | bool | None:
        """The literal behind a value, if it is one."""
        definition = self.code.values[value]
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
        return self.code.emit(
            lambda id: Rand(id, "f32", kind, seed, offset),
            (seed, *index_values(offset)),
            names=offset.names(),
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
        if covered == self.code.reduced | self.code.parallel:
            if not self.code.reduced:
                return self._accumulate(kind, part, value, register)
            if not self.code.parallel:
                return self._reduce_row(kind, part, value, register)
            if kind not in SPLITTABLE:
                raise CannotFuse(f"{kind} over all axes does not split")
            inner = self._reduce_row(kind, part, value, register)
            return self._accumulate(kind, part, inner, register)
        if covered == self.code.reduced:
            return self._reduce_row(kind, part, value, register)
        if covered == self.code.parallel:
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
        if self.code.phases[value] != "point":
            raise CannotFuse("a reduction of a value that is complete only after all rows")
        return self.code.emit(
            lambda id: Reduce(id, register, kind, part, value), (value,), loop=False
        )

    def _accumulate(self, kind: str, part: str, value: int, register: str) -> int:
        if kind not in SPLITTABLE:
            raise CannotFuse(f"{kind} does not split over rows")
        if self.code.phases[value] != "point":
            raise CannotFuse("a reduction of a value that is complete only after all rows")
        if self._mask is not None:
            raise CannotFuse("a reduction over all rows under a mask")
        phase: Phase = "columns" if self.code.loops[value] else "total"
        return self.code.emit(
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
        result = self.code.emit(
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
        self.code.store(Store(buffer.name, index, value))

    def buffers(self) -> list[tuple[Node, str, Role]]:
        """(base node, buffer name, role) in the order of the kernel's arguments."""
        result: list[tuple[Node, str, Role]] = []
        loaded = {i.buffer for i in self.code.order if isinstance(i, Load)}
        for base, buffer in self._buffers.items():
            stored = base in self._stored
            role: Role = "in" if not stored else "inout" if buffer.name in loaded else "out"
            result.append((base, buffer.name, role))
        return result

    def finish(self, name: str) -> Kernel:
        """The kernel, its instructions placed in stages.

        Raises:
            CannotFuse: when a buffer written in place is read at another place or too late.
        """
        axes = [Axis(axis, extent, "parallel") for axis, extent in self.parallel]
        axes += [Axis(axis, extent, "reduced") for axis, extent in self.reduced]
        buffers = []
        for base, buffer_name, role in self.buffers():
            info = self.facts[base]
            buffers.append(Buffer(buffer_name, info.dtype, info.shape, role))
        return finish_kernel(name, tuple(axes), tuple(buffers), self.code)


def _strides_to_write(info: TensorInfo) -> tuple[Index, ...]:
    """Strides that tell positions apart; those of a tensor without elements may all be 0."""
    if ZERO not in info.shape:
        return info.strides
    return contiguous_strides(tuple(ONE if size == ZERO else size for size in info.shape))


SPLITTABLE = frozenset({"sum", "prod", "max", "min", "any", "all"})
