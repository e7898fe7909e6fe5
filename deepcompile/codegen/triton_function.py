"""What all functions of a Triton kernel share: arguments, workspaces and the positions of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..ir.index import Index
from ..ir.nest import Accumulate, Check, Instr, Kernel, Reduce
from .triton_schedule import TritonSchedule
from .triton_spelling import POINTER
from .triton_values import Values

Grid = Literal["tiles", "splits", "points", "columns", "table", "product"]


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
        grid: what its programs are: "tiles" of points, "splits" of each row, "points", blocks of
            "columns" of the row, or chunks of the rows of a "table".
        stages: of the pipeline that loads what a loop needs; None leaves it to Triton.
        contracts: see `TritonSchedule`.
    """

    name: str
    text: str
    signature: Mapping[str, str]
    warps: int
    grid: Grid = "tiles"
    stages: int | None = None
    contracts: bool = True


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
        contracts = self.schedule.contracts
        return TritonFunction(self.name, text, signature, warps, grid, contracts=contracts)

    def define_row(self, start: str) -> None:
        """The positions of a tile along the row, from `start` on."""
        base = self.arange(self.r_size, True)
        self.line(f"r = {start} + {base}" if start != "0" else f"r = {base}")
        if self.schedule.wide:
            self.line("r = r.to(tl.int64)")
        if self.mask_row:
            self.line(f"rmask = r < {self.i(self.row)}")
        self.define_axes([(axis.name, axis.extent) for axis in self.kernel.reduced], "r")


def groups_of(body: list[Instr] | tuple[Instr, ...]) -> dict[tuple[str, int], list[Reduce]]:
    """The reductions of a stage that share kind and operand."""
    groups: dict[tuple[str, int], list[Reduce]] = {}
    for instr in body:
        if isinstance(instr, Reduce):
            groups.setdefault((instr.kind, instr.arg), []).append(instr)
    return groups
