"""Triton of one kernel: a function over tiles of points, and a finish for accumulators.

@triton.jit
def k0(b0, b1, failed): ...          # programs: one a tile, or as many as accumulate
@triton.jit
def k0_finish(b1, ws7, programs): ...   # only with accumulators: joins their partial results
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..ir.index import Index
from ..ir.nest import Accumulate, Check, Instr, Kernel, Reduce, Stage, Store, operands
from .triton_schedule import TritonSchedule, power_of_two
from .triton_spelling import POINTER, TRITON_DTYPE
from .triton_text import Extent
from .triton_values import WHOLE, Values

HEADER = """import triton
import triton.language as tl
from triton.language.extra import libdevice

from deepcompile.codegen import triton_library as dl

"""
Grid = Literal["tiles", "splits", "points", "columns"]
FINISH_COLUMNS = 128
FINISH_PROGRAMS = 32


@dataclass(frozen=True)
class Workspace:
    """Results of parts of a kernel: `columns` elements for each program, or each point if split."""

    name: str
    dtype: str
    columns: Index


@dataclass(frozen=True)
class TritonFunction:
    """A function of generated Triton.

    Attributes:
        name: what it is called.
        text: its source, without the header of the module.
        signature: argument name -> type, in order ("*fp32", "i64").
        warps: warps of a program.
        grid: what its programs are: "tiles" of points, "splits" of each row, "points", or blocks
            of "columns" of the row.
    """

    name: str
    text: str
    signature: Mapping[str, str]
    warps: int
    grid: Grid = "tiles"


@dataclass(frozen=True)
class TritonKernel:
    """A kernel as Triton.

    Arguments of each function: the buffers in order, the sizes, the workspaces and, if the kernel
    checks indices, `failed`: a pointer to an i32 that becomes 1 when a check fails. Last comes, for
    what joins accumulators, the number of their partial results (`rows`).

    Attributes:
        functions: in the order in which they are launched.
        points: positions of the parallel axes.
        row: positions of the reduced axes.
    """

    kernel: Kernel
    schedule: TritonSchedule
    functions: tuple[TritonFunction, ...]
    workspaces: tuple[Workspace, ...]
    points: Index
    row: Index

    @property
    def source(self) -> str:
        """The module's text."""
        texts = [function.text for function in self.functions]
        return HEADER + "\n\n".join(f"\n@triton.jit\n{text}" for text in texts) + "\n"

    def rows(self, sizes: Mapping[str, int]) -> int:
        """How many partial results a workspace holds; 0 for no points."""
        points = int(self.points.evaluate(sizes))
        if self.schedule.splits > 1:
            return points
        return min(-(-points // self.schedule.x_block), self.schedule.programs)

    def programs(self, function: TritonFunction, sizes: Mapping[str, int]) -> int:
        """How many programs a function is launched with."""
        points = int(self.points.evaluate(sizes))
        if function.grid == "points":
            return points
        if function.grid == "splits":
            return points * self.schedule.splits
        if function.grid == "columns":
            if all(stage.kind != "columns" for stage in self.kernel.stages):
                return 1
            row = int(self.row.evaluate(sizes))
            return max(1, -(-row // min(FINISH_COLUMNS, power_of_two(row))))
        tiles = -(-points // self.schedule.x_block)
        return min(tiles, self.schedule.programs) if self.workspaces else tiles

    def checks(self) -> bool:
        """Whether the kernel can fail on an index."""
        return any(isinstance(instr, Check) for instr in self.kernel.instructions())


def emit_triton(kernel: Kernel, schedule: TritonSchedule, name: str) -> TritonKernel:
    """The Triton of `kernel` under the function name `name`.

    Raises:
        CannotEmit: when an op has no Triton spelling.
    """
    main = Main(kernel, schedule, name)
    if schedule.splits > 1:
        from .triton_split import split_functions

        functions, spaces = split_functions(kernel, schedule, name)
    else:
        functions, spaces = [main.emit()], main.workspaces()
    if any(stage.kind in ("total", "columns") for stage in kernel.stages):
        functions.append(_Finish(kernel, schedule, f"{name}_finish", spaces).emit())
    return TritonKernel(kernel, schedule, tuple(functions), spaces, main.points, main.row)


class Function(Values):
    """What all functions of a kernel share: their arguments, and the positions of a row."""

    def __init__(self, kernel: Kernel, schedule: TritonSchedule, name: str) -> None:
        super().__init__(kernel, schedule)
        self.name = name
        self.spaces: tuple[Workspace, ...] = self.workspaces()

    def workspaces(self) -> tuple[Workspace, ...]:
        """Where accumulators leave their partial results."""
        return tuple(
            Workspace(f"ws{i.id}", i.dtype, self.row if self.is_column(i) else Index.of(1))
            for i in self.accumulators
        )

    def is_column(self, accumulate: Accumulate) -> bool:
        """Whether an accumulator has a value for each position of the row."""
        return self.extent(accumulate.arg).row

    def function(self, grid: Grid, warps: int) -> TritonFunction:
        """The function with the lines written so far."""
        signature = {buffer.name: POINTER[buffer.dtype] for buffer in self.kernel.buffers}
        signature |= dict.fromkeys(self.kernel.sizes, "i64")
        signature |= {space.name: POINTER[space.dtype] for space in self.spaces}
        if any(isinstance(instr, Check) for instr in self.definition.values()):
            signature["failed"] = "*i32"
        if grid == "columns":
            signature["rows"] = "i32"
        text = f"def {self.name}({', '.join(signature)}):\n" + "\n".join(self.lines or ["    pass"])
        return TritonFunction(self.name, text, signature, warps, grid)

    def define_row(self, start: str) -> None:
        """The positions of a tile along the row, from `start` on."""
        base = self.arange(self.r_size, True)
        self.line(f"r = {start} + {base}" if start != "0" else f"r = {base}")
        if self.schedule.wide:
            self.line("r = r.to(tl.int64)")
        if self.mask_row:
            self.line(f"rmask = r < {self.i(self.row)}")
        self.define_axes([(axis.name, axis.extent) for axis in self.kernel.reduced], "r")


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
                self._loop(number, stage)
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

    def _loop(self, number: int, stage: Stage) -> None:
        """A stage over a row longer than the tile; what earlier ones had is computed again."""
        body = self.needed(number, stage)
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

    def needed(self, number: int, stage: Stage) -> list[Instr]:
        """What a loop has to do: its effects and what they read, of earlier loops too.

        A value that only later loops read is computed there.
        """
        effects = [i for i in stage.body if isinstance(i, (Reduce, Accumulate, Store, Check))]
        wanted: set[int] = set()
        stack = [read for instr in effects for read in operands(instr)]
        while stack:
            value = stack.pop()
            instr = self.definition[value]
            if value in self.names or value in wanted or isinstance(instr, (Reduce, Accumulate)):
                continue
            wanted.add(value)
            stack += operands(instr)
        return [
            instr
            for place, before in enumerate(self.kernel.stages[: number + 1])
            for instr in before.body
            if (place == number and instr in effects)
            or (not isinstance(instr, (Store, Reduce, Accumulate)) and instr.id in wanted)
        ]

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


class _Finish(Function):
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
        own = TritonSchedule(1, width, False, 4, wide=schedule.wide)
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


def groups_of(body: list[Instr] | tuple[Instr, ...]) -> dict[tuple[str, int], list[Reduce]]:
    """The reductions of a stage that share kind and operand."""
    groups: dict[tuple[str, int], list[Reduce]] = {}
    for instr in body:
        if isinstance(instr, Reduce):
            groups.setdefault((instr.kind, instr.arg), []).append(instr)
    return groups
