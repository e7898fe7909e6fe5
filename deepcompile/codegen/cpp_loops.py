"""Loops: points among threads, rows within a point, vectors along one axis."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ..ir.index import ONE, Index, product
from ..ir.monoids import MONOIDS
from ..ir.nest import Accumulate, InRange, Instr, Reduce, Stage, Store, Valued, operands
from .cpp_dtypes import C_SCALAR, C_STORAGE, C_VECTOR
from .cpp_reductions import ROWS_BEFORE_FOLDING, Reductions, identity_of, leader_of
from .schedule import LANES, sums_rows


class Loops(Reductions):
    """The loop nest around the instructions of each stage."""

    def _shared_uniforms(self) -> None:
        """Values that vary along no axis are computed once a thread."""
        for stage in self.kernel.stages:
            if stage.kind != "row":
                continue
            for instr in stage.body:
                if isinstance(instr, Store) or self._uniform(instr) is False:
                    continue
                self._instr(instr)

    def _points(self) -> None:
        outer = product([self.kernel.extents[name] for name in self.schedule.outer])
        self.line(f"const i64 units = {self._c(outer)};")
        folds = any(self._folds(accumulate) for accumulate in self.accumulators)
        if folds:
            self.line("i64 recent = 0;")
        with self.block(
            "for (i64 p = units * tid / threads, end = units * (tid + 1) / threads; p < end; ++p)"
        ):
            self._decode("p", self.schedule.outer)
            self._point()
            if folds:
                with self.block(f"if (++recent == {ROWS_BEFORE_FOLDING})"):
                    self.line("recent = 0;")
                    self._fold_columns()
        if folds:
            self._fold_columns()

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
        self.line(
            f"const i64 chunks = ({extent} + {chunk - 1}) / {chunk}, units = {self._units()};"
        )
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
                    identity_of(accumulate.kind, accumulate.dtype), accumulate.dtype
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

    def _segments(self, body: Callable[[], None], low: str, high: str) -> None:
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
        with self.block(""):
            for number, (start, stop) in enumerate(itertools.pairwise(edges)):
                known = {id: lo <= start < hi for id, (lo, hi) in tests.items()}
                saved, self.scope.known = self.scope.known, {**self.scope.known, **known}
                from_name, to_name = f"lo{number}", f"hi{number}"
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
        if self.keeps_order and self.vector_in_rows and sums_rows(self.kernel):
            return [], {}  # each run would begin with the first lane again
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

    def _vector_loop(self, body: Callable[[], None], low: str, high: str) -> None:
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
                self.line(f"alignas(64) {C_STORAGE[dtype]} keep{number}[{length + LANES}];")
        for number, stage in enumerate(self.kernel.stages):
            if stage.kind == "row":
                for instr in stage.body:
                    if isinstance(instr, Store) or instr.id not in self.scope.names:
                        self._instr(instr)
            elif stage.kind == "loop":
                self._loop_stage(number, stage)

    def _loop_stage(self, number: int, stage: Stage) -> None:
        effects: list[Instr] = [i for i in stage.body if isinstance(i, (Store, Reduce, Accumulate))]
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
            if self.unroll > 1 and leader_of(reduce, reduces) is reduce:
                self._declare_parts(reduce)
        self._row_loops(body, inner)
        for reduce in reduces:
            if self.unroll > 1 and leader_of(reduce, reduces) is reduce:
                self._join_parts(reduce)
        self.unroll = 1
        self.kept_done |= {value.id for value in keeps}
        done: set[tuple[str, int]] = set()
        for reduce in reduces:
            self._close_reduce(reduce, reduces, done)

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

    def _row_loops(self, body: Callable[[], None], inner: list[Valued]) -> None:
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

    def _effect(self, effect: Instr, position: Index) -> None:
        if isinstance(effect, Reduce):
            if (
                leader_of(effect, [i for i in self._stage_of(effect) if isinstance(i, Reduce)])
                is effect
            ):
                self._effect_reduce(effect, position)
        elif isinstance(effect, Accumulate):
            self._effect_accumulate(effect, position)
        elif isinstance(effect, Store):
            self._store(effect)

    def _stage_of(self, instr: Valued) -> tuple[Instr, ...]:
        return self.kernel.stages[self.home[instr.id]].body

    def _units(self) -> str:
        outer = product([self.kernel.extents[name] for name in self.schedule.outer])
        if self.vector is not None and not self.vector_in_rows:
            extent = self._c(self.kernel.extents[self.vector])
            chunk = self.schedule.chunk
            return f"{self._c(outer)} * (({extent} + {chunk - 1}) / {chunk})"
        return self._c(outer)
