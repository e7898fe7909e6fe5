"""The Triton function that joins partial results of accumulators, always in the same order."""

from __future__ import annotations

from ..ir.nest import Accumulate, Kernel
from .triton_function import Function, TritonFunction, Workspace
from .triton_schedule import TritonSchedule, power_of_two
from .triton_spelling import TRITON_DTYPE

FINISH_COLUMNS = 128
FINISH_PROGRAMS = 32


class Finish(Function):
    """The function that joins the partial results and runs what comes after all points."""

    def __init__(
        self,
        kernel: Kernel,
        schedule: TritonSchedule,
        name: str,
        workspaces: tuple[Workspace, ...],
    ) -> None:
        row = 1
        columns = any(stage.kind == "columns" for stage in kernel.stages)
        for axis in kernel.reduced:
            row *= axis.extent.constant() or FINISH_COLUMNS
        width = min(FINISH_COLUMNS, power_of_two(row)) if columns else 1
        own = TritonSchedule(1, width, False, 4, wide=schedule.wide, contracts=schedule.contracts)
        super().__init__(kernel, own, name)
        self.spaces = workspaces
        self.columns = columns

    def emit(self) -> TritonFunction:
        if self.columns:
            start = f"tl.program_id(0) * {self.r_size}"
            self.define_row(start)
        for accumulate in self.accumulators:
            if self.is_column(accumulate) and not self.columns:
                continue
            self._join(accumulate)
        for stage in self.kernel.stages:
            if stage.kind in ("total", "columns"):
                for instr in stage.body:
                    self.instr(instr)
        return self.function("columns", 4)

    def _join(self, accumulate: Accumulate) -> None:
        """Fold an accumulator over all programs, always in the same order."""
        name, dtype, kind = f"ws{accumulate.id}", accumulate.dtype, accumulate.kind
        column = self.is_column(accumulate)
        shape = f"[{FINISH_PROGRAMS}]"
        if self.rank == 2:
            shape = f"[{FINISH_PROGRAMS}, {self.r_size if column else '1'}]"
        first = self.identity(kind, dtype)[0]
        self.line(f"acc{accumulate.id} = tl.full({shape}, {first}, {TRITON_DTYPE[dtype]})")
        with self.block(f"for g_start in range(0, rows, {FINISH_PROGRAMS}):"):
            self.line(f"g = g_start + {self.arange(str(FINISH_PROGRAMS), False)}")
            place = f"{name} + g"
            if column:
                place = f"{name} + g * {self.i(self.row)} + r"
            mask = "(g < rows)" + (" & rmask" if column and self.mask_row else "")
            text = f"tl.load({place}, mask={mask}, other={first})"
            if dtype == "b1":
                text = f"({text} != 0)"
            self.line(
                f"acc{accumulate.id} = {self.combine(kind, dtype, f'acc{accumulate.id}', text)}"
            )
        folded = self.fold(kind, dtype, f"acc{accumulate.id}", 0)
        self.define(accumulate, folded)
