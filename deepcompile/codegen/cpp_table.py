"""C++ of a kernel that runs over a table of rows: one piece of one row, and the walk over all."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from ..ir.index import ZERO
from ..ir.nest import Kernel
from .cpp_kernel import CppKernel, Emitter
from .schedule import plan
from .steps import TableStep

UNIT = 16
"""Elements of a row that always go to one thread: one vector."""


@lru_cache(maxsize=1)
def table_support() -> str:
    """The text that programs with tables have after the prelude."""
    return (resources.files(__package__) / "table.h").read_text()


def emit_table_kernel(kernel: Kernel, name: str) -> CppKernel:
    """The C++ of `kernel` as a function `NAME(void **slots, const i64 *table, i64 threads)`."""
    return _TableEmitter(kernel, plan(kernel), name).emit()


def table_of(step: TableStep) -> list[int]:
    """The numbers that the function of a step reads; `table.h` says how they lie."""
    starts, units = [], 0
    for extent in step.extents:
        starts.append(units)
        units += -(-extent // UNIT)
    table = [len(step.extents), units, *starts, units, *step.extents]
    for slots, offsets in zip(step.slots, step.offsets, strict=True):
        for place in zip(slots, offsets, strict=True):
            table += place
    return table


class _TableEmitter(Emitter):
    def emit(self) -> CppKernel:
        name, count = self.name, len(self.kernel.buffers)
        self.lines = [f"  const i64 {size} = extent; (void){size};" for size in self.kernel.sizes]
        self.lines += self._buffer_lines()
        self._shared_uniforms()
        if self.vector is None:
            self._point()
        else:
            self._segments(self._point, "low", "high")
        work = max(1, round(self.schedule.cost / 4)) * UNIT
        lines = [
            f"static void {name}_piece(void *const *buffers, i64 extent, i64 low, i64 high) {{",
            "  (void)extent; (void)low; (void)high;",
            *self.lines,
            "}",
            f'extern "C" void {name}(void **slots, const i64 *table, i64 threads) {{',
            f"  i64 team = table[1] * {work} / 32768 + 1;",
            "  team = team < threads ? team : threads;",
            "  dc_rows call = {slots, table};",
            f"  dc_parallel(dc_walk_rows<{count}, {name}_piece>, &call, team);",
            "}",
        ]
        return CppKernel("\n".join(lines), ZERO)
