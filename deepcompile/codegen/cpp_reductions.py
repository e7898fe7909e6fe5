"""Running states of reductions over a row, and of accumulators over all points."""

from __future__ import annotations

from ..ir.index import ZERO, Index
from ..ir.monoids import MONOIDS, depends_on_order
from ..ir.nest import Accumulate, Reduce, Valued
from .cpp_dtypes import C_SCALAR, C_STORAGE, C_VECTOR
from .cpp_text import literal
from .cpp_values import Values
from .schedule import LANES

ROWS_BEFORE_FOLDING = 64
"""After so many rows, column sums go to a second array, so that rounding stays small."""
LONG_ROW = 4096
"""Sums in f32 of longer rows, and of rows of unknown length, run in f64."""
_SIZE_OF = {"f32": 4, "f64": 8, "i32": 4, "i64": 8, "b1": 1}


class Reductions(Values):
    """Declaring, updating and closing the states of monoids.

    Where sums keep an order of their own, a sum over a row has sixteen states whatever runs along
    the vectors of its kernel: element `j` goes to state `j % 16`, and in the end state `i + 8` is
    added to `i`, then `i + 4`, and so on. That is what vectors along the row come to, one after the
    other. Sums of columns add one point after the other, each thread its share of the points.
    """

    def _accumulator_dtype(self, accumulate: Accumulate) -> str:
        """Totals of f32 are kept in f64: one number a row costs nothing and loses nothing."""
        column = accumulate.id in self.columns
        return "f64" if not column and accumulate.dtype == "f32" else accumulate.dtype

    def _folds(self, accumulate: Accumulate) -> bool:
        """Whether a column sum is kept in two arrays, of recent rows and of all before."""
        return (
            accumulate.id in self.columns and accumulate.kind == "sum" and accumulate.dtype == "f32"
        )

    def _fold_columns(self) -> None:
        length = self._c(self._row_length())
        for accumulate in self.accumulators:
            if self._folds(accumulate):
                recent, total = f"acc{accumulate.id}", f"sum{accumulate.id}"
                self.line(
                    f"for (i64 i = 0; i < {length}; ++i) "
                    f"{{ {total}[i] += {recent}[i]; {recent}[i] = 0; }}"
                )

    def _offsets(self) -> dict[int, Index]:
        at, offsets = ZERO, {}
        for accumulate in self.accumulators:
            offsets[accumulate.id] = at
            size = Index.of(64)
            if accumulate.id in self.columns:
                arrays = 2 if self._folds(accumulate) else 1
                size = self._row_length() * (arrays * _SIZE_OF[accumulate.dtype]) + 64
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
            identity = literal(identity_of(accumulate.kind, dtype), dtype)
            if number in self.columns:
                kind = C_STORAGE[dtype]
                self.line(f"{kind} *acc{number} = ({kind} *)(mine + {self._c(offset)});")
                length = self._c(self._row_length())
                if self._folds(accumulate):
                    self.line(f"{kind} *sum{number} = acc{number};")
                    self.line(f"acc{number} += {length};")
                    self.line(f"for (i64 i = 0; i < {length}; ++i) sum{number}[i] = 0;")
                self.line(
                    f"for (i64 i = 0; i < {length}; ++i) dc_store1(acc{number} + i, {identity});"
                )
            else:
                self.line(f"{C_SCALAR[dtype]} acc{number} = {identity};")

    def _flush_totals(self) -> None:
        for number, offset in self._offsets().items():
            if number in self.columns:
                continue
            accumulate = self.definition[number]
            assert isinstance(accumulate, Accumulate)
            kind = C_SCALAR[self._accumulator_dtype(accumulate)]
            self.line(f"*({kind} *)(mine + {self._c(offset)}) = acc{number};")

    def _unrolling(self, inner: list[Valued], reduces: list[Reduce]) -> int:
        """How many independent running states hide the latency of a short reduction."""
        if not self.vector_in_rows or not reduces or len(inner) > 24:
            return 1
        if self.keeps_order and any(depends_on_order(r.kind, r.dtype) for r in reduces):
            return 1
        if any(reduce.kind in ("argmax", "argmin") for reduce in reduces):
            return 1
        assert self.vector is not None
        extent = self.kernel.extents[self.vector].constant()
        if extent is not None and extent < 4 * LANES:
            return 1
        return 4 if len(inner) <= 6 else 2

    def _declare_parts(self, reduce: Reduce) -> None:
        dtype = self._state_dtype(reduce)
        identity = self._splat_literal(MONOIDS[reduce.kind].identity[dtype][0], dtype)
        for part in range(1, self.unroll):
            self.line(f"{C_VECTOR[dtype]} red{reduce.id}_{part} = {identity};")

    def _join_parts(self, reduce: Reduce) -> None:
        combine = MONOIDS[reduce.kind].combine
        for part in range(1, self.unroll):
            self.line(f"red{reduce.id} = {combine}(red{reduce.id}, red{reduce.id}_{part});")

    def _reduce_is_vector(self, reduce: Reduce) -> bool:
        """Whether the running state is a vector: it varies along the vector axis, or folds it."""
        if self.vector_in_rows:
            return True
        return self.vector is not None and self.vector in self.varies[reduce.arg]

    def _state_dtype(self, reduce: Reduce) -> str:
        """The dtype of the running state: long sums in f32 would lose digits."""
        dtype = self.definition[reduce.arg].dtype
        if reduce.kind != "sum" or dtype != "f32":
            return dtype
        length = self._row_length().constant()
        return "f64" if length is None or length > LONG_ROW else "f32"

    def _declare_reduce(self, reduce: Reduce, all_reduces: list[Reduce]) -> None:
        leader = leader_of(reduce, all_reduces)
        if leader is not reduce:
            return
        vector = self._reduce_is_vector(reduce)
        monoid = MONOIDS[reduce.kind]
        dtype = self._state_dtype(reduce)
        kinds = C_VECTOR if vector else C_SCALAR
        identities = monoid.identity[dtype]
        splat = self._splat_literal if vector else literal
        if reduce.kind in ("argmax", "argmin"):
            self.line(f"{kinds[dtype]} best{reduce.id} = {splat(identities[0], dtype)};")
            self.line(f"{kinds['i64']} at{reduce.id} = {splat(identities[1], 'i64')};")
            return
        if self._has_states(reduce):
            kind = (C_SCALAR if self.vector_in_rows else kinds)[dtype]
            identity = (literal if self.vector_in_rows else splat)(identities[0], dtype)
            self.line(f"{kind} red{reduce.id}[{LANES}];")
            self.line(f"for (int i = 0; i < {LANES}; ++i) red{reduce.id}[i] = {identity};")
            return
        self.line(f"{kinds[dtype]} red{reduce.id} = {splat(identities[0], dtype)};")

    def _has_states(self, reduce: Reduce) -> bool:
        """Whether the states of a sum in order are an array, rather than the lanes of a vector."""
        if not self.keeps_order or not depends_on_order(reduce.kind, reduce.dtype):
            return False
        if not self.vector_in_rows:
            return True
        assert self.vector is not None
        extent = self.kernel.extents[self.vector].constant()
        # With several axes, only whole vectors leave off where the next ones go on.
        return len(self.schedule.rows) > 1 and (extent is None or extent % LANES != 0)

    def _step_states(self, reduce: Reduce, value: str, position: Index) -> None:
        """Add a value, or in vectors along the row each lane, to the state of its position."""
        states, combine = f"red{reduce.id}", MONOIDS[reduce.kind].combine
        place = self._c(position)
        if not self.vector_in_rows:
            state = f"{states}[{place} & {LANES - 1}]"
            self.line(f"{state} = {combine}({state}, {value});")
            return
        with self.block(""):
            self.line(f"{C_SCALAR[self._state_dtype(reduce)]} t[{LANES}];")
            self.line(f"dc_store(t, {value});")
            with self.block(f"for (i64 i = 0; i < {self.tail or LANES}; ++i)"):
                state = f"{states}[({place} + i) & {LANES - 1}]"
                self.line(f"{state} = {combine}({state}, t[i]);")

    def _close_states(self, reduce: Reduce) -> None:
        states, combine = f"red{reduce.id}", MONOIDS[reduce.kind].combine
        self.line(
            f"for (int n = {LANES // 2}; n; n /= 2) for (int i = 0; i < n; ++i) "
            f"{states}[i] = {combine}({states}[i], {states}[i + n]);"
        )

    def _effect_reduce(self, reduce: Reduce, position: Index) -> None:
        monoid = MONOIDS[reduce.kind]
        vector = self._reduce_is_vector(reduce)
        dtype = self.definition[reduce.arg].dtype
        value = self._as_vector(reduce.arg) if vector else self._value(reduce.arg)
        folds = vector and self.vector_in_rows
        if self._has_states(reduce):
            if self._state_dtype(reduce) != dtype:
                value = f"dc_to_{self._state_dtype(reduce)}({value})"
            self._step_states(reduce, value, position)
            return
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
        if self._state_dtype(reduce) != dtype:
            value = f"dc_to_{self._state_dtype(reduce)}({value})"
        state = f"red{reduce.id}" + (f"_{self.part}" if self.part else "")
        self.line(f"{state} = {monoid.combine}({state}, {value});")

    def _close_reduce(
        self, reduce: Reduce, all_reduces: list[Reduce], done: set[tuple[str, int]]
    ) -> None:
        leader = leader_of(reduce, all_reduces)
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
        if self._has_states(leader):
            if key not in done:
                self._close_states(leader)
                done.add(key)
            found = f"red{leader.id}[0]"
            if self._state_dtype(leader) != dtype:
                found = f"dc_to_{dtype}({found})"
            self._define(reduce, found, vector and not folds)
            return
        if folds:
            kind = C_SCALAR[reduce.dtype]
            self.line(f"const {kind} v{reduce.id} = ({kind}){monoid.horizontal}(red{leader.id});")
            self._name(reduce.id, f"v{reduce.id}", False)
            return
        if self._state_dtype(leader) != dtype:
            self._define(reduce, f"dc_to_{dtype}(red{leader.id})", vector)
            return
        self._name(reduce.id, f"red{leader.id}", vector)

    def _effect_accumulate(self, accumulate: Accumulate, position: Index) -> None:
        combine = MONOIDS[accumulate.kind].combine
        number = accumulate.id
        if number in self.columns:
            at = f"acc{number} + {self._c(position)}"
            if not self.vector_in_rows:
                value = self._value(accumulate.arg)
                self.line(f"dc_store1({at}, {combine}(dc_load1({at}), {value}));")
                return
            value = self._as_vector(accumulate.arg)
            if self.tail:
                total = f"{combine}(dc_loadn({at}, {self.tail}), {value})"
                self.line(f"dc_storen({at}, {total}, {self.tail});")
            else:
                self.line(f"dc_store({at}, {combine}(dc_load({at}), {value}));")
            return
        kind = C_SCALAR[self._accumulator_dtype(accumulate)]
        if self.vector is not None and not self.vector_in_rows:
            value = self._as_vector(accumulate.arg)
            if self.tail:
                identity = self._splat_literal(
                    identity_of(accumulate.kind, accumulate.dtype), accumulate.dtype
                )
                value = f"dc_where(dc_lane_mask({self.tail}), {value}, {identity})"
            self.line(f"part{number} = {combine}(part{number}, {value});")
            return
        self.line(f"acc{number} = {combine}(acc{number}, ({kind}){self._value(accumulate.arg)});")


def leader_of(reduce: Reduce, reduces: list[Reduce]) -> Reduce:
    """The first reduction with the same kind and argument: parts of one monoid share its state."""
    return next(r for r in reduces if r.kind == reduce.kind and r.arg == reduce.arg)


def identity_of(kind: str, dtype: str) -> float | int | bool:
    return MONOIDS[kind].identity[dtype][0]
