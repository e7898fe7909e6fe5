"""The Triton function that does the work: over tiles of points, a row in one tile or in a loop."""

from __future__ import annotations

from ..ir.nest import Accumulate, Instr, Reduce, Store
from .triton_function import Function, TritonFunction, groups_of
from .triton_spelling import TRITON_DTYPE
from .triton_text import Extent
from .triton_values import WHOLE
from .triton_walks import walk_of


class Main(Function):
    """The function over tiles of points."""

    def emit(self) -> TritonFunction:
        pid = "tl.program_id(0)" + (".to(tl.int64)" if self.schedule.wide else "")
        self.line(f"pid = {pid}")
        if self.kernel.reduced and self.schedule.persistent:
            self.define_row("0")
        if not self.accumulators:
            self.line(f"x_start = pid * {self.x_size}")
            self._tile()
        else:
            for accumulate in self.accumulators:
                if not self._in_memory(accumulate):
                    extent = Extent(True, self.is_column(accumulate))
                    value = self.identity(accumulate.kind, accumulate.dtype)[0]
                    text = self.full(value, TRITON_DTYPE[accumulate.dtype], extent)
                    self.line(f"acc{accumulate.id} = {text}")
            step = f"tl.num_programs(0) * {self.x_size}"
            with self.block(
                f"for x_start in range(pid * {self.x_size}, {self.i(self.points)}, {step}):"
            ):
                self._tile()
            self._flush()
        return self.function("tiles", self.schedule.warps)

    def _in_memory(self, accumulate: Accumulate) -> bool:
        """Column sums of rows longer than a tile are kept in the workspace."""
        return self.is_column(accumulate) and not self.schedule.persistent

    def _tile(self) -> None:
        self.line(f"x = x_start + {self.arange(self.x_size, False)}")
        if self.mask_points:
            self.line(f"xmask = x < {self.i(self.points)}")
        if self.kernel.parallel:
            self.define_axes([(axis.name, axis.extent) for axis in self.kernel.parallel], "x")
        for number, stage in enumerate(self.kernel.stages):
            if stage.kind == "loop" and not self.schedule.persistent:
                self._loop(number)
            elif stage.kind in ("row", "loop"):
                self._body(stage.body)

    def _body(self, body: tuple[Instr, ...] | list[Instr]) -> None:
        groups = groups_of(body)
        for instr in body:
            if isinstance(instr, Reduce):
                group = groups[instr.kind, instr.arg]
                if group[0] is instr:
                    self.reduce_tile(group)
            elif isinstance(instr, Accumulate):
                extent = Extent(True, self.is_column(instr))
                text = self.accumulated(instr, extent)
                name = f"acc{instr.id}"
                self.line(f"{name} = {self.combine(instr.kind, instr.dtype, name, text)}")
            else:
                self.instr(instr)

    def _loop(self, number: int) -> None:
        """A stage over a row longer than the tile; what earlier ones had is computed again."""
        body = walk_of(self.kernel, number)
        groups = groups_of(body)
        for group in groups.values():
            self.start_state(group)
        outside = dict(self.names)
        with self.block(f"for r_start in range(0, {self.i(self.row)}, {self.r_size}):"):
            self.define_row("r_start")
            for instr in body:
                if isinstance(instr, Reduce):
                    if groups[instr.kind, instr.arg][0] is instr:
                        self.step_state(groups[instr.kind, instr.arg])
                elif isinstance(instr, Accumulate) and self._in_memory(instr):
                    self._accumulate_in_memory(instr)
                elif isinstance(instr, Accumulate):
                    raise AssertionError("a scalar accumulator in a loop")
                else:
                    self.instr(instr)
        self.names = outside
        for group in groups.values():
            self.finish_state(group)

    def define(self, instr: Instr, text: str) -> None:
        super().define(instr, text)
        # A name that is assigned in two loops is one variable to Triton: keep them apart.
        if self.depth > 1 and not self.schedule.persistent and not isinstance(instr, Store):
            self._rename(instr.id)

    def _rename(self, value: int) -> None:
        self._count = getattr(self, "_count", 0) + 1
        old = self.names[value]
        new = f"{old}_{self._count}"
        last = self.lines.pop()
        self.lines.append(last.replace(f"{old} = ", f"{new} = ", 1))
        self.names[value] = new

    def _accumulate_in_memory(self, accumulate: Accumulate) -> None:
        name, dtype = f"ws{accumulate.id}", accumulate.dtype
        tile = self.accumulated(accumulate, WHOLE)
        folded = self.fold(accumulate.kind, dtype, tile, 0)
        first = self.identity(accumulate.kind, dtype)[0]
        place = f"{name} + pid * {self.i(self.row)} + r"
        rest = " & rmask" if self.mask_row else ""
        start = f"tl.full({self.shape(Extent(False, True))}, x_start, tl.int64)"
        again = f"({start} != pid * {self.x_size})"
        old = f"tl.load({place}, mask={again}{rest}, other={first})"
        if dtype == "b1":
            old = f"({old} != 0)"
        self.line(f"old = {old}")
        mask = ", mask=rmask" if self.mask_row else ""
        self.line(f"tl.store({place}, {self.combine(accumulate.kind, dtype, 'old', folded)}{mask})")
        self.line("tl.debug_barrier()")

    def _flush(self) -> None:
        """Write what this program accumulated to its row of the workspaces."""
        for accumulate in self.accumulators:
            if self._in_memory(accumulate):
                continue
            folded = self.fold(accumulate.kind, accumulate.dtype, f"acc{accumulate.id}", 0)
            place = f"ws{accumulate.id} + pid"
            if self.is_column(accumulate):
                place += f" * {self.i(self.row)} + r"
                mask = ", mask=rmask" if self.mask_row else ""
                self.line(f"tl.store({place}, {folded}{mask})")
            else:
                zero = f"tl.zeros({'[1]' if self.rank == 1 else '[1, 1]'}, tl.int32)"
                self.line(f"tl.store({place} + {zero}, {folded})")
