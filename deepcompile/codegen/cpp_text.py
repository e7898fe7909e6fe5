"""Writing C++: lines and blocks, names of values in scope, and index expressions as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..ir.index import ONE, ZERO, Divided, Index, product
from ..ir.nest import Accumulate, Kernel, Store, Valued, index_values
from .cpp_dtypes import C_SCALAR, C_VECTOR
from .schedule import CpuSchedule, dependence


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
class Scope:
    """Names of values in the C++ scope being written, and what is known there."""

    names: dict[int, str] = field(default_factory=dict)
    vectors: set[int] = field(default_factory=set)
    known: dict[int, bool] = field(default_factory=dict)


class Writer:
    """The text of one kernel in the making, and what its values are called there.

    Args:
        keeps_order: sums add in an order of their own, whatever else the kernel does; see
            `Reductions`.
    """

    def __init__(
        self, kernel: Kernel, schedule: CpuSchedule, name: str, *, keeps_order: bool = False
    ) -> None:
        self.kernel = kernel
        self.schedule = schedule
        self.name = name
        self.keeps_order = keeps_order
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
        self.scope = Scope()
        self.kept_done: set[int] = set()
        self.accumulators = [
            instr for instr in kernel.instructions() if isinstance(instr, Accumulate)
        ]
        self.columns = {instr.id: instr for instr in self.accumulators if self._is_column(instr)}

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(head + " {")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    def _row_length(self) -> Index:
        return product([axis.extent for axis in self.kernel.reduced])

    def _enter(self) -> Scope:
        outer = self.scope
        self.scope = Scope(dict(outer.names), set(outer.vectors), dict(outer.known))
        return outer

    def _leave(self, outer: Scope) -> None:
        self.scope = outer

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
            return f"dc_load1({at})"
        return f"dc_loadn({at}, {self.tail})" if self.tail else f"dc_load({at})"

    def _logical_position(self) -> Index:
        """The linear position over the reduced axes in the order of the kernel."""
        position, stride = ZERO, ONE
        for axis in reversed(self.kernel.reduced):
            position = position + Index.of(axis.name) * stride
            stride = stride * axis.extent
        return position

    def _name(self, value: int, name: str, vector: bool) -> None:
        self.scope.names[value] = name
        if vector:
            self.scope.vectors.add(value)
        else:
            self.scope.vectors.discard(value)

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

    def _is_column(self, accumulate: Accumulate) -> bool:
        return bool(self.varies[accumulate.arg] & self.reduced)
