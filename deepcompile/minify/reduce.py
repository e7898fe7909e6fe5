"""Making a failing case smaller, step by step; each step is tried out before it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepcompile.child.rows import Ref, Row, Rows, mapped
from deepcompile.minify.case import Case, Oracle, Source, made, replaced

Values = Callable[[Case], Mapping[str, Any]]
"""The value of each row of a case in eager: tensors and numbers."""


class Reducer:
    """All steps, over one case.

    Args:
        values: see `Values`; of the first case.
        say: called after each step that made the case smaller, with what it was.
    """

    def __init__(
        self, case: Case, oracle: Oracle, values: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.case = case
        self.oracle = oracle
        self.values = values
        self.say = say

    def run(self) -> Case:
        """The smallest case that was found until the budget ended."""
        self._try("no gradients", self._without_backward())
        self._try("static sizes", replace(self.case, dynamic=False))
        self._outputs()
        self._cut_end()
        self._cut_start()
        self._drop_rows()
        self._cut_end()
        self._bypass()
        self._try("no gradients", self._without_backward())
        self._gradients()
        self._seeded_inputs()
        self._smaller_sizes()
        return self.case

    def _try(self, what: str, case: Case | None) -> bool:
        if case is None or not case.rows.rows or case.is_same(self.case):
            return False
        if not self.oracle.fails(case):
            return False
        before, self.case = self.case, case
        a, b = before.rows.operations, case.rows.operations
        self.say(what if a == b else f"{what}: {a} -> {b} operations")
        return True

    # -- what is wanted --------------------------------------------------------------------------

    def _without_backward(self) -> Case | None:
        if not self.case.backward:
            return None
        inputs = {name: value.detach() for name, value in self.case.inputs.items()}
        return replace(self.case, backward=False, inputs=inputs)

    def _outputs(self) -> None:
        """One output, or as few as it takes."""
        outputs = tuple(dict.fromkeys(self.case.rows.outputs))
        size = max(len(outputs) // 2, 1)
        while len(outputs) > 1:
            for part in _parts(outputs, size):
                rows = replace(self.case.rows, outputs=part)
                if len(part) < len(outputs) and self._try("outputs", self._case(rows)):
                    outputs = part
                    break
            else:
                if size == 1:
                    return
                size //= 2
                continue
            size = max(min(size, len(outputs) // 2), 1)

    def _case(self, rows: Rows) -> Case:
        return self.case.with_rows(rows, self.values)

    def _gradients(self) -> None:
        """Gradients of as few inputs as possible."""
        for name, value in list(self.case.inputs.items()):
            if self.case.backward and value.requires_grad:
                inputs = {**self.case.inputs, name: value.detach()}
                self._try(f"no gradient of {name}", replace(self.case, inputs=inputs))

    # -- rows ------------------------------------------------------------------------------------

    def _is_tensor(self, name: str) -> bool:
        return isinstance(self.values.get(name), Tensor)

    def _cut_end(self) -> None:
        """Return the earliest value that shows the failure, searched for in halves."""
        names = [row.name for row in self.case.rows.rows if self._is_tensor(row.name)]
        low, high = 0, len(names) - 1
        while low < high:
            middle = (low + high) // 2
            rows = replace(self.case.rows, outputs=(names[middle],))
            if self._try("end", self._case(rows)):
                names = [row.name for row in self.case.rows.rows if self._is_tensor(row.name)]
                high = min(middle, len(names) - 1)
                low = min(low, high)
            else:
                low = middle + 1

    def _cut_start(self) -> None:
        """Begin as late as possible, with the values that there are by then."""
        low = 0
        while low < (count := len(self.case.rows.rows)) - 1:
            step = max((count - low) // 2, 1)
            names = [row.name for row in self.case.rows.rows[: low + step]]
            if self._try("start", self._given(names)):
                low = 0 if step > 1 else low
                continue
            if step == 1:
                return
            low_next = self._try_halves(low, step)
            if not low_next:
                return

    def _try_halves(self, low: int, step: int) -> bool:
        """A shorter start, where a longer one shows no failure."""
        while step > 1:
            step //= 2
            names = [row.name for row in self.case.rows.rows[: low + step]]
            if self._try("start", self._given(names)):
                return True
        return False

    def _given(self, names: Sequence[str]) -> Case | None:
        """The case with these rows as inputs, or as constants where they are numbers."""
        rows = self.case.rows
        constants = {
            name: self.values[name]
            for name in names
            if isinstance(self.values.get(name), int | float)
        }
        given = [name for name in names if self._is_tensor(name) and name not in rows.outputs]
        if not constants and not given:
            return None
        return self._case(replaced(rows, constants, given))

    def _drop_rows(self) -> None:
        """Delta debugging: parts of the rows become inputs, ever smaller parts."""
        size = max(len(self.case.rows.rows) // 2, 1)
        while True:
            changed = False
            position = 0
            while position < len(self.case.rows.rows):
                names = [row.name for row in self.case.rows.rows[position : position + size]]
                if self._try("rows", self._given(names)):
                    changed = True
                else:
                    position += size
                if self.oracle.is_late():
                    return
            if size == 1 and not changed:
                return
            size = max(size // 2, 1)

    def _bypass(self) -> None:
        """Rows give way to one of their own operands that has the same type."""
        for row in reversed(self.case.rows.rows):
            if row not in self.case.rows.rows or row.name in self.case.rows.outputs:
                continue
            value = self.values.get(row.name)
            same = (name for name in row.reads if _alike(self.values.get(name), value))
            any(
                self._try("without a row", self._case(_without(self.case.rows, row, name)))
                for name in same
            )

    # -- inputs ----------------------------------------------------------------------------------

    def _seeded_inputs(self) -> None:
        """Inputs from a generator, where their values do not matter."""
        names = [name for name in self.case.inputs if name not in self.case.sources]
        for source in ("randn", "rand"):
            if self._try("inputs", self._with_sources(names, source)):
                return
        for name in names:
            for source in ("randn", "rand"):
                if self._try(f"input {name}", self._with_sources([name], source)):
                    break

    def _with_sources(self, names: Sequence[str], kind: str) -> Case | None:
        if not names:
            return None
        inputs, sources = dict(self.case.inputs), dict(self.case.sources)
        for name in names:
            value = inputs[name]
            if not value.is_contiguous() or value.dtype.is_complex:
                continue
            source: Source = "randn" if kind == "randn" else "rand"
            if not value.dtype.is_floating_point:
                source = "randint"
            inputs[name] = made(source, value, _seed(self.case, name))
            sources[name] = source
        return replace(self.case, inputs=inputs, sources=sources)

    def _smaller_sizes(self) -> None:
        """Smaller sizes, everywhere at once, while all inputs can be made in them."""
        if set(self.case.sources) != set(self.case.inputs):
            return
        sizes = {n for value in self.case.inputs.values() for n in value.shape if n > 2}
        for size in sorted(sizes, reverse=True):
            for new in _smaller(size):
                if self._try(f"size {size} -> {new}", self._resized(size, new)):
                    break

    def _resized(self, size: int, new: int) -> Case:
        def change(leaf: Any) -> Any:
            return new if type(leaf) is int and leaf == size else leaf

        rows = tuple(
            replace(row, args=mapped(row.args, change), kwargs=mapped(dict(row.kwargs), change))
            for row in self.case.rows.rows
        )
        inputs = {}
        for name, value in self.case.inputs.items():
            shape = [new if n == size else n for n in value.shape]
            like = torch.empty(shape, dtype=value.dtype).requires_grad_(value.requires_grad)
            inputs[name] = made(self.case.sources[name], like, _seed(self.case, name))
        return replace(self.case, rows=replace(self.case.rows, rows=rows), inputs=inputs)


def _seed(case: Case, name: str) -> int:
    return case.rows.inputs.index(name)


def _smaller(size: int) -> Iterator[int]:
    new = 2
    while new < size:
        yield new
        new *= 4


def _parts(values: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(values[i : i + size]) for i in range(0, len(values), size)]


def _alike(a: Any, b: Any) -> bool:
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    return both and (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def _without(rows: Rows, row: Row, name: str) -> Rows:
    def value(leaf: Any) -> Any:
        return Ref(name) if isinstance(leaf, Ref) and leaf.name == row.name else leaf

    kept = tuple(
        replace(other, args=mapped(other.args, value), kwargs=mapped(dict(other.kwargs), value))
        for other in rows.rows
        if other is not row
    )
    return replace(rows, rows=kept)
