"""The instructions of a kernel in the making: each value once, and when it is complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ...ir.nest import Accumulate, Instr, Store, Valued, operands
from .refusals import CannotFuse

Phase = Literal["point", "columns", "total"]
"""When a value is known: at each point, or, by column or once, only after all rows."""


class Instructions:
    """A growing list of instructions in which an instruction that is there already is reused.

    Args:
        parallel, reduced: names of the axes.

    Attributes:
        order: all instructions, operands before their users.
        values: the definition of each value, by its id.
        phases: when each value is complete.
        loops: whether each value varies along the reduced axes.
    """

    def __init__(self, parallel: frozenset[str], reduced: frozenset[str]) -> None:
        self.parallel = parallel
        self.reduced = reduced
        self.order: list[Instr] = []
        self.values: list[Valued] = []
        self.phases: list[Phase] = []
        self.loops: list[bool] = []
        self._ids: dict[object, int] = {}

    def emit(
        self,
        make: Callable[[int], Valued],
        reads: tuple[int, ...],
        key: object = None,
        *,
        names: frozenset[str] = frozenset(),
        loop: bool | None = None,
        phase: Phase | None = None,
    ) -> int:
        """The id of the value that `make(id)` defines; the same one for the same instruction.

        Args:
            reads: the values it reads.
            key: what makes it the same instruction, where that is not the instruction itself.
            names: names in its index expressions.
            loop, phase: of the value, where they do not follow from `reads` and `names`.

        Raises:
            CannotFuse: when it varies along the rows and reads what is complete only after them.
        """
        probe = make(-1)
        # Constants are keyed by their text: 0.0, -0.0 and False are equal in Python.
        known = self._ids.get(key or probe)
        if known is not None:
            return known
        merged: Phase = "point"
        for read in reads:
            if self.phases[read] != "point":
                if merged == "columns" or self.phases[read] == "columns":
                    merged = "columns"
                else:
                    merged = "total"
        in_loop = bool(names & self.reduced) or any(self.loops[read] for read in reads)
        if phase is None and merged != "point":
            if names & self.parallel or any(
                self.phases[read] == "point" and self._varies_along_rows(read) for read in reads
            ):
                raise CannotFuse("it needs a value that is complete only after all rows")
            if in_loop:
                merged = "columns"
        id = len(self.values)
        instr = make(id)
        self._ids[key or probe] = id
        self.values.append(instr)
        self.order.append(instr)
        self.phases.append(phase or merged)
        self.loops.append(in_loop if loop is None else loop)
        return id

    def store(self, store: Store) -> None:
        """Add a store, which defines no value."""
        self.order.append(store)

    def _varies_along_rows(self, value: int) -> bool:
        seen, stack = set(), [value]
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            instr = self.values[current]
            if isinstance(instr, Accumulate):
                continue
            index = getattr(instr, "index", None) or getattr(instr, "offset", None)
            if index is not None and index.names() & self.parallel:
                return True
            stack.extend(operands(instr))
        return False
