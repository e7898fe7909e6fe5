"""C++ of one kernel: a work-sharing body over the parallel axes, and a finish for accumulators."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..ir.index import Divided, Index, ONE, ZERO, product
from ..ir.nest import (
    Accumulate,
    Apply,
    Cast,
    Const,
    IndexValue,
    InRange,
    Instr,
    Kernel,
    Load,
    Rand,
    Reduce,
    Stage,
    Store,
    Valued,
    index_values,
    operands,
)
from ..ir.ops import C_SCALAR, C_STORAGE, C_VECTOR, MONOIDS, REGISTER_OF
from .schedule import LANES, CpuSchedule, dependence, expand, plan

_SIZE_OF = {"f32": 4, "f64": 8, "i32": 4, "i64": 8, "b1": 1}
_ROUND = {
    "bf16": "dc_round_bf16",
    "f16": "dc_round_f16",
    "i8": "dc_wrap_i8",
    "i16": "dc_wrap_i16",
    "u8": "dc_wrap_u8",
}


@dataclass(frozen=True)
class CppKernel:
    """A kernel as C++.

    Attributes:
        body: the text of functions `NAME_body` and `NAME(void **buffers, const i64 *sizes, char
            *workspace, i64 threads)`.
        workspace: bytes of scratch for each thread, as a size expression.
    """

    body: str
    workspace: Index


def emit_kernel(kernel: Kernel, name: str) -> CppKernel:
    """The C++ of `kernel` under the function name `name`."""
    expanded = expand(kernel)
    return _Emitter(expanded, plan(expanded), name).emit()


def literal(value: float | int | bool, dtype: str) -> str:
    """A C++ literal of a register dtype."""
    if dtype == "b1":
        return "true" if value else "false"
    if dtype in ("i32", "i64"):
        if value in (-(2**63), -(2**31)):
            return f"(({C_SCALAR[dtype]})({int(value) + 1}LL - 1))"
        return f"(({C_SCALAR[dtype]}){int(value)}LL)"
    number = float(value)
    suffix = "f" if dtype == "f32" else ""
    if math.isnan(number):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(number) or (dtype == "f32" and abs(number) > 3.4028235677973366e38):
        return f"{'-' if number < 0 else ''}__builtin_inf{suffix}()"
    return f"{number!r}{suffix}"


@dataclass
class _Scope:
    """Names of values in the C++ scope being written, and what is known there."""

    names: dict[int, str] = field(default_factory=dict)
    vectors: set[int] = field(default_factory=set)
    known: dict[int, bool] = field(default_factory=dict)


class _Emitter:
    def __init__(self, kernel: Kernel, schedule: CpuSchedule, name: str) -> None:
        self.kernel = kernel
        self.schedule = schedule
        self.name = name
        self.lines: list[str] = []
        self.depth = 1
        self.varies = dependence(kernel)
        self.definition: dict[int, Valued] = {}
        self.home: dict[int, int] = {}
        for number, stage in enumerate(kernel.stages):
            for instr in stage.body:
                if not isinstance(instr, Store):
                    self.definition[instr.id] = instr
                    self.home[instr.id] = number
        self.vector = schedule.vector
        self.vector_in_rows = self.vector in schedule.rows
        self.reduced = frozenset(axis.name for axis in kernel.reduced)
        self.tail: str | None = None
        self.unroll = 1
        self.part = 0
        self.scope = _Scope()
        self.kept_done: set[int] = set()
        self.accumulators = [
            instr for instr in kernel.instructions() if isinstance(instr, Accumulate)
        ]
        self.columns = {
            instr.id: instr for instr in self.accumulators if self._is_column(instr)
        }

    # -- text -----------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(head + " {")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    # -- the whole ------------------------------------------------------------------------------

    def emit(self) -> CppKernel:
        self.lines = []
        kernel = self.kernel
        self._unpack()
        if self.accumulators:
            self.line("char *mine = workspace + tid * stride;")
            self._start_accumulators()
        self._shared_uniforms()
        if self.vector is not None and not self.vector_in_rows:
            self._parallel_vector()
        else:
            self._points()
        if self.accumulators:
            self._flush_totals()
        body = "\n".join(self.lines)
        finish = self._finish()
        struct = f"struct {self.name}_call {{ void **buffers; const i64 *sizes; char *workspace; i64 stride; }};"
        head = f"static void {self.name}_body(void *call_, i64 tid, i64 threads) {{"
        unpack = (
            f"  const {self.name}_call &call = *({self.name}_call *)call_;\n"
            "  void *const *buffers = call.buffers; const i64 *sizes = call.sizes;\n"
            "  char *workspace = call.workspace; const i64 stride = call.stride;\n"
            "  (void)buffers; (void)sizes; (void)workspace; (void)stride; (void)tid; (void)threads;"
        )
        workspace = self._workspace()
        units, work = self._units(), self._c(self._work())
        main = [
            f"extern \"C\" void {self.name}(void **buffers, const i64 *sizes, char *workspace, i64 threads) {{",
            *self._size_lines(),
            f"  const i64 units = {units}, work = {work};",
            "  i64 team = work / 32768 + 1;",
            "  team = team < threads ? team : threads;",
            "  team = team < units ? team : units;",
            "  if (team < 1) team = 1;",
            f"  {self.name}_call call = {{buffers, sizes, workspace, {self._c(workspace)}}};",
            f"  dc_parallel({self.name}_body, &call, team);",
            finish,
            "}",
        ]
        text = "\n".join([struct, head, unpack, body, "}", *[m for m in main if m]])
        _ = kernel
        return CppKernel(text, workspace)

    def _size_lines(self) -> list[str]:
        lines = [
            f"  const i64 {size} = sizes[{number}]; (void){size};"
            for number, size in enumerate(self.kernel.sizes)
        ]
        return [*lines, "  (void)sizes;"]

    def _unpack(self) -> None:
        self.lines += self._size_lines()
        self.lines += self._buffer_lines()

    def _buffer_lines(self) -> list[str]:
        lines = []
        for number, buffer in enumerate(self.kernel.buffers):
            const = "const " if buffer.role == "in" else ""
            kind = f"{const}{C_STORAGE[buffer.dtype]} *__restrict"
            lines.append(f"  {kind} {buffer.name} = ({kind})buffers[{number}]; (void){buffer.name};")
        return lines

    def _work(self) -> Index:
        total = product([axis.extent for axis in self.kernel.axes])
        return total * max(1, round(self.schedule.cost / 4))

    def _units(self) -> str:
        outer = product([self.kernel.extents[name] for name in self.schedule.outer])
        if self.vector is not None and not self.vector_in_rows:
            extent = self._c(self.kernel.extents[self.vector])
            chunk = self.schedule.chunk
            return f"{self._c(outer)} * (({extent} + {chunk - 1}) / {chunk})"
        return self._c(outer)

    # -- accumulators ---------------------------------------------------------------------------

    def _is_column(self, accumulate: Accumulate) -> bool:
        return bool(self.varies[accumulate.arg] & self.reduced)

    def _row_length(self) -> Index:
        return product([axis.extent for axis in self.kernel.reduced])

    def _accumulator_dtype(self, accumulate: Accumulate) -> str:
        """Totals of f32 are kept in f64: one number a row costs nothing and loses nothing."""
        column = accumulate.id in self.columns
        return "f64" if not column and accumulate.dtype == "f32" else accumulate.dtype

    def _offsets(self) -> dict[int, Index]:
        at, offsets = ZERO, {}
        for accumulate in self.accumulators:
            offsets[accumulate.id] = at
            size = Index.of(64)
            if accumulate.id in self.columns:
                size = self._row_length() * _SIZE_OF[accumulate.dtype] + 64
            at = at + size
        self._total_workspace = at
        return offsets

    def _workspace(self) -> Index:
        self._offsets()
        # Threads write to their own lines of the cache.
        return self._total_workspace + 64 if self.accumulators else ZERO

    def _start_accumulators(self) -> None:
        for number, offset in self._offsets().items():
            accumulate = self.definition[number]
            assert isinstance(accumulate, Accumulate)
            dtype = self._accumulator_dtype(accumulate)
            kind = C_SCALAR[dtype]
            identity = literal(_identity(accumulate.kind, dtype), dtype)
            if number in self.columns:
                self.line(f"{kind} *acc{number} = ({kind} *)(mine + {self._c(offset)});")
                length = self._c(self._row_length())
                self.line(f"for (i64 i = 0; i < {length}; ++i) acc{number}[i] = {identity};")
            else:
                self.line(f"{kind} acc{number} = {identity};")

    def _flush_totals(self) -> None:
        for number, offset in self._offsets().items():
            if number in self.columns:
                continue
            accumulate = self.definition[number]
            assert isinstance(accumulate, Accumulate)
            kind = C_SCALAR[self._accumulator_dtype(accumulate)]
            self.line(f"*({kind} *)(mine + {self._c(offset)}) = acc{number};")

    def _finish(self) -> str:
        late = [stage for stage in self.kernel.stages if stage.kind in ("total", "columns")]
        if not late:
            return ""
        self.lines, self.depth, self.scope = [], 1, _Scope()
        self.lines += self._buffer_lines()
        self.line(f"const i64 stride = call.stride; (void)stride;")
        offsets = self._offsets()
        for accumulate in self.accumulators:
            if accumulate.id in self.columns:
                continue
            dtype = self._accumulator_dtype(accumulate)
            kind, place = C_SCALAR[dtype], self._c(offsets[accumulate.id])
            combine = MONOIDS[accumulate.kind].combine
            self.line(f"{kind} acc{accumulate.id} = *({kind} *)(workspace + {place});")
            self.line(
                f"for (i64 t = 1; t < team; ++t) acc{accumulate.id} = "
                f"{combine}(acc{accumulate.id}, *({kind} *)(workspace + t * stride + {place}));"
            )
            self._name(accumulate.id, f"({C_SCALAR[accumulate.dtype]})acc{accumulate.id}", False)
        for stage in late:
            if stage.kind == "total":
                for instr in stage.body:
                    self._instr(instr)
            else:
                self._finish_columns(stage, offsets)
        return "\n".join(self.lines)

    def _finish_columns(self, stage: Stage, offsets: dict[int, Index]) -> None:
        hoisted = [i for i in stage.body if not isinstance(i, Store) and not self._loopy(i)]
        for instr in hoisted:
            self._instr(instr)
        rest = [instr for instr in stage.body if instr not in hoisted]
        used = [n for n in self.columns if any(n in operands(i) for i in rest)]

        def body() -> None:
            position = self._row_position()
            for number in used:
                accumulate = self.columns[number]
                kind = C_SCALAR[accumulate.dtype]
                combine = MONOIDS[accumulate.kind].combine
                vector = self._is_vector_place()
                place = f"workspace + {self._c(offsets[number])}"
                register = C_VECTOR[accumulate.dtype] if vector else kind
                name = f"c{number}"
                self.line(f"{register} {name} = {self._row_load(f'(({kind} *)({place}))', position)};")
                with self.block("for (i64 t = 1; t < team; ++t)"):
                    other = self._row_load(f"(({kind} *)({place} + t * stride))", position)
                    self.line(f"{name} = {combine}({name}, {other});")
                self._name(number, name, vector)
            for instr in rest:
                self._instr(instr)

        self._row_loops(body, [])

    # -- loops over points ----------------------------------------------------------------------

    def _shared_uniforms(self) -> None:
        """Values that vary along no axis are computed once a thread."""
        for stage in self.kernel.stages:
            if stage.kind != "row":
                continue
            for instr in stage.body:
                if isinstance(instr, Store) or self._uniform(instr) is False:
                    continue
                self._instr(instr)

    def _uniform(self, instr: Instr) -> bool:
        if isinstance(instr, (Store, Reduce, Accumulate)):
            return False
        if self.varies[instr.id]:
            return False
        if any(
            isinstance(self.definition[read], (Reduce, Accumulate))
            or not self._uniform(self.definition[read])
            for read in operands(instr)
        ):
            return False
        if isinstance(instr, Load):
            return self.kernel.buffer(instr.buffer).role == "in"
        return True

    def _points(self) -> None:
        outer = product([self.kernel.extents[name] for name in self.schedule.outer])
        self.line(f"const i64 units = {self._c(outer)};")
        with self.block(
            "for (i64 p = units * tid / threads, end = units * (tid + 1) / threads; p < end; ++p)"
        ):
            self._decode("p", self.schedule.outer)
            self._point()

    def _decode(self, flat: str, axes: tuple[str, ...]) -> None:
        if len(axes) == 1:
            self.line(f"const i64 {axes[0]} = {flat};")
            return
        rest = flat
        for number, name in enumerate(reversed(axes)):
            if number == len(axes) - 1:
                self.line(f"const i64 {name} = {rest};")
                break
            extent = self._c(self.kernel.extents[name])
            self.line(f"const i64 {name} = {rest} % {extent};")
            self.line(f"const i64 q{number}_{name} = {rest} / {extent};")
            rest = f"q{number}_{name}"

    def _parallel_vector(self) -> None:
        vector = self.vector
        assert vector is not None
        extent, chunk = self._c(self.kernel.extents[vector]), self.schedule.chunk
        self.line(f"const i64 chunks = ({extent} + {chunk - 1}) / {chunk}, units = {self._units()};")
        with self.block(
            "for (i64 u = units * tid / threads, end = units * (tid + 1) / threads; u < end; ++u)"
        ):
            if self.schedule.outer:
                self.line("const i64 p = u / chunks;")
                self._decode("p", self.schedule.outer)
            self.line(f"const i64 first = u % chunks * {chunk};")
            self.line(f"const i64 last = first + {chunk} < {extent} ? first + {chunk} : {extent};")
            totals = [a for a in self.accumulators if a.id not in self.columns]
            for accumulate in totals:
                register = C_VECTOR[accumulate.dtype]
                identity = self._splat_literal(
                    _identity(accumulate.kind, accumulate.dtype), accumulate.dtype
                )
                self.line(f"{register} part{accumulate.id} = {identity};")
            self._segments(self._point, "first", "last")
            for accumulate in totals:
                monoid = MONOIDS[accumulate.kind]
                kind = C_SCALAR[self._accumulator_dtype(accumulate)]
                self.line(
                    f"acc{accumulate.id} = {monoid.combine}(acc{accumulate.id}, "
                    f"({kind}){monoid.horizontal}(part{accumulate.id}));"
                )

    def _segments(self, body, low: str, high: str) -> None:
        """Vector loops from `low` to `high`, one for each run where range tests are settled."""
        vector = self.vector
        assert vector is not None
        breaks, tests = self._breakpoints()
        if not breaks:
            self._vector_loop(body, low, high)
            return
        extent = self.kernel.extents[vector].constant()
        assert extent is not None
        edges = [0, *breaks, extent]
        for number, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
            known = {id: lo <= start < hi for id, (lo, hi) in tests.items()}
            saved, self.scope.known = self.scope.known, {**self.scope.known, **known}
            from_name, to_name = f"lo{self.depth}_{number}", f"hi{self.depth}_{number}"
            self.line(f"const i64 {from_name} = {low} > {start} ? {low} : {start};")
            self.line(f"const i64 {to_name} = {high} < {stop} ? {high} : {stop};")
            self._vector_loop(body, from_name, to_name)
            self.scope.known = saved

    def _breakpoints(self) -> tuple[list[int], dict[int, tuple[int, int]]]:
        """Where along the vector axis range tests change, when that is known while compiling."""
        vector = self.vector
        extent = self.kernel.extents[vector].constant() if vector else None
        if vector is None or extent is None:
            return [], {}
        found: set[int] = set()
        tests: dict[int, tuple[int, int]] = {}
        for instr in self.kernel.instructions():
            if not isinstance(instr, InRange):
                continue
            if instr.index.coefficient(vector) != ONE:
                continue
            rest = instr.index - Index.of(vector)
            low, high = (instr.low - rest).constant(), (instr.high - rest).constant()
            if low is None or high is None:
                continue
            low, high = max(low, 0), min(high, extent)
            tests[instr.id] = (low, high)
            found |= {edge for edge in (low, high) if 0 < edge < extent}
        if len(found) > 8:
            return [], {}
        return sorted(found), tests

    def _vector_loop(self, body, low: str, high: str) -> None:
        vector = self.vector
        assert vector is not None
        with self.block(""):
            self.line(f"i64 {vector} = {low};")
            if self.unroll > 1:
                step = LANES * self.unroll
                with self.block(f"for (; {vector} + {step} <= {high}; {vector} += {step})"):
                    self.line(f"const i64 base_{vector} = {vector};")
                    for part in range(self.unroll):
                        outer = self._enter()
                        self.part = part
                        with self.block(""):
                            self.line(f"const i64 {vector} = base_{vector} + {LANES * part};")
                            body()
                        self._leave(outer)
                    self.part = 0
            outer = self._enter()
            with self.block(f"for (; {vector} + {LANES} <= {high}; {vector} += {LANES})"):
                body()
            self._leave(outer)
            exact = self._divides(low, high)
            if not exact:
                outer = self._enter()
                with self.block(f"if ({vector} < {high})"):
                    self.line(f"const i64 lanes = {high} - {vector};")
                    self.tail = "lanes"
                    body()
                    self.tail = None
                self._leave(outer)

    def _divides(self, low: str, high: str) -> bool:
        assert self.vector is not None
        extent = self.kernel.extents[self.vector].constant()
        whole = low in ("0", "first") and extent is not None and extent % LANES == 0
        return whole and (low == "first" or high == str(extent) or high == f"((i64){extent})")

    def _enter(self) -> _Scope:
        outer = self.scope
        self.scope = _Scope(dict(outer.names), set(outer.vectors), dict(outer.known))
        return outer

    def _leave(self, outer: _Scope) -> None:
        self.scope = outer

    def _point(self) -> None:
        """All stages at one point (or 16 of them, when a parallel axis is the vector axis)."""
        self.kept_done = set()
        for number in sorted(self.schedule.kept):
            dtype = self.definition[number].dtype
            length = self._row_length().constant()
            assert length is not None
            if self._kept_vector():
                self.line(f"alignas(64) {C_VECTOR[dtype]} keep{number}[{length}];")
            else:
                self.line(f"alignas(64) {_keep_type(dtype)} keep{number}[{length + LANES}];")
        for number, stage in enumerate(self.kernel.stages):
            if stage.kind == "row":
                for instr in stage.body:
                    if isinstance(instr, Store) or instr.id not in self.scope.names:
                        self._instr(instr)
            elif stage.kind == "loop":
                self._loop_stage(number, stage)

    def _kept_vector(self) -> bool:
        return self.vector is not None and not self.vector_in_rows

    # -- loops over the row ---------------------------------------------------------------------

    def _loop_stage(self, number: int, stage: Stage) -> None:
        effects = [i for i in stage.body if isinstance(i, (Store, Reduce, Accumulate))]
        keeps = [
            self.definition[v]
            for v in sorted(self.schedule.kept)
            if self.home[v] == number or (self.home[v] < number and v not in self.kept_done)
        ]
        keeps = [value for value in keeps if self.home[value.id] == number]
        needed = self._needed(effects, keeps)
        reduces = [i for i in effects if isinstance(i, Reduce)]
        for reduce in reduces:
            self._declare_reduce(reduce, reduces)
        hoisted = [i for i in needed if not (self.varies[i.id] & self.reduced)]
        for instr in hoisted:
            self._instr(instr)
        inner = [i for i in needed if i not in hoisted]

        def body() -> None:
            position = self._row_position()
            for instr in inner:
                if instr.id in self.schedule.kept and instr.id in self.kept_done:
                    self._read_kept(instr, position)
                else:
                    self._instr(instr)
                    if instr.id in self.schedule.kept:
                        self._write_kept(instr, position)
            for effect in effects:
                self._effect(effect, position)

        self.unroll = self._unrolling(inner, reduces)
        for reduce in reduces:
            if self.unroll > 1 and _leader(reduce, reduces) is reduce:
                self._declare_parts(reduce)
        self._row_loops(body, inner)
        for reduce in reduces:
            if self.unroll > 1 and _leader(reduce, reduces) is reduce:
                self._join_parts(reduce)
        self.unroll = 1
        self.kept_done |= {value.id for value in keeps}
        done: set[tuple[str, int]] = set()
        for reduce in reduces:
            self._close_reduce(reduce, reduces, done)

    def _unrolling(self, inner: list[Valued], reduces: list[Reduce]) -> int:
        """How many independent running states hide the latency of a short reduction."""
        if not self.vector_in_rows or not reduces or len(inner) > 24:
            return 1
        if any(reduce.kind in ("argmax", "argmin") for reduce in reduces):
            return 1
        assert self.vector is not None
        extent = self.kernel.extents[self.vector].constant()
        if extent is not None and extent < 4 * LANES:
            return 1
        return 4 if len(inner) <= 6 else 2

    def _declare_parts(self, reduce: Reduce) -> None:
        dtype = self.definition[reduce.arg].dtype
        identity = self._splat_literal(MONOIDS[reduce.kind].identity[dtype][0], dtype)
        for part in range(1, self.unroll):
            self.line(f"{C_VECTOR[dtype]} red{reduce.id}_{part} = {identity};")

    def _join_parts(self, reduce: Reduce) -> None:
        combine = MONOIDS[reduce.kind].combine
        for part in range(1, self.unroll):
            self.line(f"red{reduce.id} = {combine}(red{reduce.id}, red{reduce.id}_{part});")

    def _needed(self, effects: list[Instr], keeps: list[Valued]) -> list[Valued]:
        """Loop values that this stage computes, in order: its own and those of earlier loops."""
        wanted: set[int] = set()
        stack = [read for effect in effects for read in operands(effect)]
        stack += [value.id for value in keeps]
        while stack:
            value = stack.pop()
            if value in wanted or value in self.scope.names:
                continue
            instr = self.definition[value]
            if isinstance(instr, (Reduce, Accumulate)):
                continue
            wanted.add(value)
            if value in self.schedule.kept and value in self.kept_done:
                continue
            stack.extend(operands(instr))
        order = {instr: at for at, instr in enumerate(self.definition)}
        return [self.definition[value] for value in sorted(wanted, key=order.__getitem__)]

    def _row_loops(self, body, inner: list[Valued]) -> None:
        """Loops over the reduced axes around `body`; the vector axis innermost."""
        rows = self.schedule.rows
        outer = rows[:-1] if self.vector_in_rows else rows
        heads = [
            f"for (i64 {name} = 0; {name} < {self._c(self.kernel.extents[name])}; ++{name})"
            for name in outer
        ]

        def nest(level: int) -> None:
            if level < len(heads):
                with self.block(heads[level]):
                    saved = self._enter()
                    if level == len(heads) - 1 and self.vector_in_rows:
                        self._hoist_from_vector(inner)
                    nest(level + 1)
                    self._leave(saved)
                return
            if self.vector_in_rows:
                assert self.vector is not None
                extent = self._c(self.kernel.extents[self.vector])
                self._segments(body, "0", extent)
            else:
                saved = self._enter()
                with self.block(""):
                    body()
                self._leave(saved)

        nest(0)

    def _hoist_from_vector(self, inner: list[Valued]) -> None:
        for instr in inner:
            if self.vector in self.varies[instr.id] or instr.id in self.schedule.kept:
                continue
            if all(read in self.scope.names for read in operands(instr)):
                self._instr(instr)

    def _row_position(self) -> Index:
        """The linear position over the reduced axes, the vector axis fastest."""
        position, stride = ZERO, ONE
        for name in reversed(self.schedule.rows):
            position = position + Index.of(name) * stride
            stride = stride * self.kernel.extents[name]
        return position

    def _is_vector_place(self) -> bool:
        return self.vector_in_rows

    def _row_load(self, pointer: str, position: Index) -> str:
        at = f"{pointer} + {self._c(position)}"
        if not self._is_vector_place():
            return f"*({at})"
        return f"dc_loadn({at}, {self.tail})" if self.tail else f"dc_load({at})"

    def _write_kept(self, instr: Valued, position: Index) -> None:
        name = f"keep{instr.id}"
        if self._kept_vector():
            self.line(f"{name}[{self._c(position)}] = {self._as_vector(instr.id)};")
            return
        value = self._as_vector(instr.id) if self.vector_in_rows else self._value(instr.id)
        if not self.vector_in_rows:
            self.line(f"dc_store1({name} + {self._c(position)}, {value});")
        else:
            # A row buffer has room for a whole vector behind its end.
            self.line(f"dc_store({name} + {self._c(position)}, {value});")

    def _read_kept(self, instr: Valued, position: Index) -> None:
        name, at = f"keep{instr.id}", self._c(position)
        if self._kept_vector():
            self._define(instr, f"{name}[{at}]", True)
        elif self.vector_in_rows:
            self._define(instr, f"dc_load({name} + {at})", True)
        else:
            self._define(instr, f"dc_load1({name} + {at})", False)

    # -- reductions -----------------------------------------------------------------------------

    def _reduce_is_vector(self, reduce: Reduce) -> bool:
        """Whether the running state is a vector: it varies along the vector axis, or folds it."""
        if self.vector_in_rows:
            return True
        return self.vector is not None and self.vector in self.varies[reduce.arg]

    def _declare_reduce(self, reduce: Reduce, all_reduces: list[Reduce]) -> None:
        leader = _leader(reduce, all_reduces)
        if leader is not reduce:
            return
        vector = self._reduce_is_vector(reduce)
        monoid = MONOIDS[reduce.kind]
        dtype = self.definition[reduce.arg].dtype
        kinds = C_VECTOR if vector else C_SCALAR
        identities = monoid.identity[dtype]
        splat = self._splat_literal if vector else literal
        if reduce.kind in ("argmax", "argmin"):
            self.line(f"{kinds[dtype]} best{reduce.id} = {splat(identities[0], dtype)};")
            self.line(f"{kinds['i64']} at{reduce.id} = {splat(identities[1], 'i64')};")
            return
        self.line(f"{kinds[dtype]} red{reduce.id} = {splat(identities[0], dtype)};")

    def _effect_reduce(self, reduce: Reduce, position: Index) -> None:
        monoid = MONOIDS[reduce.kind]
        vector = self._reduce_is_vector(reduce)
        dtype = self.definition[reduce.arg].dtype
        value = self._as_vector(reduce.arg) if vector else self._value(reduce.arg)
        folds = vector and self.vector_in_rows
        if folds and self.tail:
            identity = self._splat_literal(monoid.identity[dtype][0], dtype)
            value = f"dc_where(dc_lane_mask({self.tail}), {value}, {identity})"
        if reduce.kind in ("argmax", "argmin"):
            logical = self._logical_position()
            index = self._vector_index(logical) if vector else self._c(logical)
            if folds and self.tail:
                last = self._splat_literal(monoid.identity[dtype][1], "i64")
                index = f"dc_where(dc_lane_mask({self.tail}), {index}, {last})"
            if vector and not self.vector_in_rows:
                index = f"dc_splat_i64({self._c(logical)})"
            self.line(f"{monoid.combine}(best{reduce.id}, at{reduce.id}, {value}, {index});")
            return
        state = f"red{reduce.id}" + (f"_{self.part}" if self.part else "")
        self.line(f"{state} = {monoid.combine}({state}, {value});")

    def _logical_position(self) -> Index:
        """The linear position over the reduced axes in the order of the kernel."""
        position, stride = ZERO, ONE
        for axis in reversed(self.kernel.reduced):
            position = position + Index.of(axis.name) * stride
            stride = stride * axis.extent
        return position

    def _close_reduce(
        self, reduce: Reduce, all_reduces: list[Reduce], done: set[tuple[str, int]]
    ) -> None:
        leader = _leader(reduce, all_reduces)
        monoid = MONOIDS[reduce.kind]
        vector = self._reduce_is_vector(reduce)
        folds = vector and self.vector_in_rows
        dtype = self.definition[reduce.arg].dtype
        key = (reduce.kind, reduce.arg)
        if reduce.kind in ("argmax", "argmin"):
            best, at = f"best{leader.id}", f"at{leader.id}"
            if folds:
                if key not in done:
                    self.line(f"{C_SCALAR[dtype]} top{leader.id}; i64 where{leader.id};")
                    self.line(
                        f"{monoid.horizontal}({best}, {at}, &top{leader.id}, &where{leader.id});"
                    )
                    done.add(key)
                best, at = f"top{leader.id}", f"where{leader.id}"
            self._name(reduce.id, at if reduce.part == "index" else best, vector and not folds)
            return
        if folds:
            kind = C_SCALAR[reduce.dtype]
            self.line(f"const {kind} v{reduce.id} = {monoid.horizontal}(red{leader.id});")
            self._name(reduce.id, f"v{reduce.id}", False)
            return
        self._name(reduce.id, f"red{leader.id}", vector)

    def _effect(self, effect: Instr, position: Index) -> None:
        if isinstance(effect, Reduce):
            if _leader(effect, [i for i in self._stage_of(effect) if isinstance(i, Reduce)]) is effect:
                self._effect_reduce(effect, position)
        elif isinstance(effect, Accumulate):
            self._effect_accumulate(effect, position)
        elif isinstance(effect, Store):
            self._store(effect)

    def _stage_of(self, instr: Valued) -> tuple[Instr, ...]:
        return self.kernel.stages[self.home[instr.id]].body

    def _effect_accumulate(self, accumulate: Accumulate, position: Index) -> None:
        combine = MONOIDS[accumulate.kind].combine
        number = accumulate.id
        if number in self.columns:
            at = f"acc{number} + {self._c(position)}"
            if not self.vector_in_rows:
                self.line(f"*({at}) = {combine}(*({at}), {self._value(accumulate.arg)});")
                return
            value = self._as_vector(accumulate.arg)
            if self.tail:
                self.line(f"dc_storen({at}, {combine}(dc_loadn({at}, {self.tail}), {value}), {self.tail});")
            else:
                self.line(f"dc_store({at}, {combine}(dc_load({at}), {value}));")
            return
        kind = C_SCALAR[self._accumulator_dtype(accumulate)]
        if self.vector is not None and not self.vector_in_rows:
            value = self._as_vector(accumulate.arg)
            if self.tail:
                identity = self._splat_literal(
                    _identity(accumulate.kind, accumulate.dtype), accumulate.dtype
                )
                value = f"dc_where(dc_lane_mask({self.tail}), {value}, {identity})"
            self.line(f"part{number} = {combine}(part{number}, {value});")
            return
        self.line(f"acc{number} = {combine}(acc{number}, ({kind}){self._value(accumulate.arg)});")

    # -- instructions ---------------------------------------------------------------------------

    def _name(self, value: int, name: str, vector: bool) -> None:
        self.scope.names[value] = name
        if vector:
            self.scope.vectors.add(value)
        else:
            self.scope.vectors.discard(value)

    def _loopy(self, instr: Instr) -> bool:
        return not isinstance(instr, Store) and bool(self.varies[instr.id] & self.reduced)

    def _value(self, value: int) -> str:
        return self.scope.names[value]

    def _as_vector(self, value: int) -> str:
        name = self.scope.names[value]
        if value in self.scope.vectors:
            return name
        return f"dc_splat_{self.definition[value].dtype}({name})"

    def _splat_literal(self, value: float | int | bool, dtype: str) -> str:
        return f"dc_splat_{dtype}({literal(value, dtype)})"

    def _define(self, instr: Valued, text: str, vector: bool) -> None:
        kind = (C_VECTOR if vector else C_SCALAR)[instr.dtype]
        self.line(f"const {kind} v{instr.id} = {text};")
        self._name(instr.id, f"v{instr.id}", vector)

    def _instr(self, instr: Instr) -> None:
        match instr:
            case Const(id=id, dtype=dtype, value=value):
                self._name(id, literal(value, dtype), False)
                if dtype == "b1":
                    self.scope.known[id] = bool(value)
            case IndexValue(index=index):
                vector = self._index_is_vector(index)
                self._define(instr, self._vector_index(index) if vector else self._c(index), vector)
            case InRange():
                self._in_range(instr)
            case Load():
                self._load(instr)
            case Apply():
                self._apply(instr)
            case Cast():
                self._cast(instr)
            case Rand(kind=kind, seed=seed, offset=offset):
                vector = self._index_is_vector(offset)
                at = self._vector_index(offset) if vector else self._c(offset)
                function = {"uniform": "dc_uniform", "normal": "dc_normal"}[kind]
                self._define(instr, f"{function}({self._value(seed)}, {at})", vector)
            case Store():
                self._store(instr)
            case Accumulate():
                self._effect_accumulate(instr, ZERO)
            case _:
                raise AssertionError(f"unplaced {instr}")

    def _in_range(self, instr: InRange) -> None:
        known = self.scope.known.get(instr.id)
        if known is not None:
            self._name(instr.id, "true" if known else "false", False)
            return
        if self._index_is_vector(instr.index):
            index = self._vector_index(instr.index)
            low, high = (f"dc_splat_i64({self._c(bound)})" for bound in (instr.low, instr.high))
            self._define(
                instr, f"dc_bitwise_and(dc_ge({index}, {low}), dc_lt({index}, {high}))", True
            )
            return
        index = self._c(instr.index)
        self._define(
            instr, f"{index} >= {self._c(instr.low)} && {index} < {self._c(instr.high)}", False
        )

    def _load(self, instr: Load) -> None:
        register = REGISTER_OF[self.kernel.buffer(instr.buffer).dtype]
        mask = instr.mask
        known = None if mask is None else self.scope.known.get(mask)
        if known is False:
            self._name(instr.id, literal(0, register), False)
            return
        if known is True:
            mask = None
        vector_mask = mask is not None and mask in self.scope.vectors
        if not self._index_is_vector(instr.index) and not vector_mask:
            text = f"dc_load1({instr.buffer} + {self._c(instr.index)})"
            if mask is not None:
                text = f"{self._value(mask)} ? {text} : {literal(0, register)}"
            self._define(instr, text, False)
            return
        vector = self.vector
        assert vector is not None
        stride = instr.index.coefficient(vector)
        gathers = any(value in self.scope.vectors for value in index_values(instr.index))
        if stride is None or gathers or vector_mask:
            lanes = f"dc_lane_mask({self.tail})" if self.tail else "dc_splat_b1(true)"
            if mask is not None:
                inside = self._as_vector(mask)
                lanes = f"dc_bitwise_and({lanes}, {inside})" if self.tail else inside
            index = self._vector_index(instr.index)
            self._define(instr, f"dc_gather({instr.buffer}, {index}, {lanes})", True)
            return
        pointer = f"{instr.buffer} + {self._c(instr.index)}"
        if stride == ONE:
            text = f"dc_loadn({pointer}, {self.tail})" if self.tail else f"dc_load({pointer})"
        elif self.tail:
            text = f"dc_loadsn({pointer}, {self._c(stride)}, {self.tail})"
        else:
            text = f"dc_loads({pointer}, {self._c(stride)})"
        if mask is not None:
            text = f"{self._value(mask)} ? {text} : {self._splat_literal(0, register)}"
        self._define(instr, text, True)

    def _apply(self, instr: Apply) -> None:
        if instr.op in ("logical_and", "logical_or") and self._fold_logic(instr):
            return
        if instr.op == "where":
            known = self.scope.known.get(instr.args[0])
            if known is not None:
                chosen = instr.args[1] if known else instr.args[2]
                self._name(instr.id, self.scope.names[chosen], chosen in self.scope.vectors)
                if chosen in self.scope.known:
                    self.scope.known[instr.id] = self.scope.known[chosen]
                return
        if instr.op in ("eq", "ne") and self._compare_position(instr):
            return
        vector = any(argument in self.scope.vectors for argument in instr.args)
        read = self._as_vector if vector else self._value
        arguments = [read(argument) for argument in instr.args]
        if instr.op in ("uniform", "normal", "philox_u32"):
            arguments[0] = self._value(instr.args[0])
        self._define(instr, f"dc_{instr.op}({', '.join(arguments)})", vector)

    def _compare_position(self, instr: Apply) -> bool:
        """Compare the position along the vector axis with one number: in 32-bit lanes."""
        for here, there in (instr.args, instr.args[::-1]):
            position = self.definition[here]
            if not isinstance(position, IndexValue) or there in self.scope.vectors:
                continue
            if self.vector is None or position.index.coefficient(self.vector) != ONE:
                continue
            if any(value in self.scope.vectors for value in index_values(position.index)):
                continue
            base = self._c(position.index)
            lane = f"dc_near({self._value(there)} - {base})"
            test = f"dc_{instr.op}(dc_iota_i32(0, 1), dc_splat_i32({lane}))"
            self._define(instr, test, True)
            return True
        return False

    def _fold_logic(self, instr: Apply) -> bool:
        absorbing = instr.op == "logical_or"
        known = [self.scope.known.get(argument) for argument in instr.args]
        if absorbing in known:
            self._name(instr.id, "true" if absorbing else "false", False)
            self.scope.known[instr.id] = absorbing
            return True
        for value, other in zip(known, reversed(instr.args), strict=True):
            if value is not None and self.definition[other].dtype == "b1":
                self._name(instr.id, self.scope.names[other], other in self.scope.vectors)
                if other in self.scope.known:
                    self.scope.known[instr.id] = self.scope.known[other]
                return True
        return False

    def _cast(self, instr: Cast) -> None:
        vector = instr.arg in self.scope.vectors
        text = self._value(instr.arg)
        if self.definition[instr.arg].dtype != instr.dtype:
            text = f"dc_to_{instr.dtype}({text})"
        if instr.to in _ROUND:
            text = f"{_ROUND[instr.to]}({text})"
        self._define(instr, text, vector)

    def _store(self, store: Store) -> None:
        vector = self.vector
        stride = None if vector is None else store.index.coefficient(vector)
        pointer = f"{store.buffer} + {self._c(store.index)}"
        if vector is None or not self._index_is_vector(store.index):
            self.line(f"dc_store1({pointer}, {self._value(store.value)});")
            return
        value = self._as_vector(store.value)
        assert stride is not None
        if stride == ONE:
            lanes = f", {self.tail}" if self.tail else ""
            self.line(f"dc_store{'n' if self.tail else ''}({pointer}, {value}{lanes});")
            return
        self.line(f"dc_stores({pointer}, {self._c(stride)}, {value}, {self.tail or LANES});")

    # -- addresses ------------------------------------------------------------------------------

    def _index_is_vector(self, index: Index) -> bool:
        names = index.names()
        if self.vector in names:
            return True
        return any(value in self.scope.vectors for value in index_values(index))

    def _c(self, index: Index) -> str:
        """An index expression as a C++ i64."""
        constant = index.constant()
        if constant is not None:
            return f"((i64){constant})" if constant > 2**31 or constant < 0 else str(constant)
        parts = []
        for monomial, coefficient in index.terms:
            factors = [self._atom(atom) for atom in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, f"(i64){coefficient}")
            parts.append(" * ".join(factors))
        return f"({' + '.join(parts)})"

    def _atom(self, atom: str | Divided) -> str:
        if isinstance(atom, Divided):
            function = "dc_floordiv" if atom.op == "floordiv" else "dc_remainder"
            return f"{function}((i64){self._c(atom.numerator)}, (i64){self._c(atom.denominator)})"
        if atom[0] == "v" and atom[1:].isdigit():
            return self.scope.names[int(atom[1:])]
        return atom

    def _vector_index(self, index: Index) -> str:
        """An index expression that varies along the vector axis, as 16 i64."""
        vector = self.vector
        stride = None if vector is None else index.coefficient(vector)
        values = [v for v in index_values(index) if v in self.scope.vectors]
        if not values and stride is not None:
            return f"dc_iota_i64({self._c(index)}, {self._c(stride)})"
        terms = []
        for monomial, coefficient in index.terms:
            factors = [self._vector_atom(atom) for atom in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, f"dc_splat_i64({coefficient}LL)")
            term = factors[0]
            for factor in factors[1:]:
                term = f"dc_mul({term}, {factor})"
            terms.append(term)
        total = terms[0]
        for term in terms[1:]:
            total = f"dc_add({total}, {term})"
        return total

    def _vector_atom(self, atom: str | Divided) -> str:
        if isinstance(atom, Divided):
            function = "dc_floordiv" if atom.op == "floordiv" else "dc_remainder"
            top, bottom = (
                self._vector_index(part)
                if self._index_is_vector(part)
                else f"dc_splat_i64({self._c(part)})"
                for part in (atom.numerator, atom.denominator)
            )
            return f"{function}({top}, {bottom})"
        if atom == self.vector:
            return f"dc_iota_i64({atom}, 1)"
        if atom[0] == "v" and atom[1:].isdigit():
            return self._as_vector(int(atom[1:]))
        return f"dc_splat_i64({atom})"


def _leader(reduce: Reduce, reduces: list[Reduce]) -> Reduce:
    """The first reduction with the same kind and argument: parts of one monoid share its state."""
    return next(r for r in reduces if r.kind == reduce.kind and r.arg == reduce.arg)


def _identity(kind: str, dtype: str) -> float | int | bool:
    return MONOIDS[kind].identity[dtype][0]


def _keep_type(dtype: str) -> str:
    return C_STORAGE[dtype]
