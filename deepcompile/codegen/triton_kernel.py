"""Triton of one kernel: its functions, in the order in which they are launched.

@triton.jit
def k0(b0, b1, ws7, failed): ...              # programs: one a tile, or as many as accumulate
@triton.jit
def k0_finish(b0, b1, ws7, failed, rows): ... # only with accumulators: joins their results
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..ir.index import Index
from ..ir.nest import Check, Kernel
from .triton_finish import FINISH_COLUMNS, Finish
from .triton_function import TritonFunction, Workspace
from .triton_schedule import TritonSchedule, power_of_two
from .triton_softmax import with_one_walk
from .triton_split import split_functions
from .triton_tiles import Main

HEADER = """import triton
import triton.language as tl
from triton.language.extra import libdevice

from deepcompile.codegen import triton_library as dl

"""


@dataclass(frozen=True)
class TritonKernel:
    """A kernel as Triton.

    Arguments of each function: the buffers in order, the sizes, the workspaces and, if the kernel
    checks indices, `failed`: a pointer to an i32 that becomes 1 when a check fails. Last comes, for
    what joins accumulators, the number of their partial results (`rows`).

    Attributes:
        kernel: what they compute: where rows are walked over, rewritten for fewer walks.
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
        return module_text(self.functions)

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


def module_text(functions: Iterable[TritonFunction]) -> str:
    """A module with these functions."""
    texts = [f"\n@triton.jit\n{function.text}" for function in functions]
    return HEADER + "\n\n".join(texts) + "\n"


def emit_triton(kernel: Kernel, schedule: TritonSchedule, name: str) -> TritonKernel:
    """The Triton of `kernel` under the function name `name`.

    Raises:
        CannotEmit: when an op has no Triton spelling.
    """
    if kernel.reduced and not schedule.persistent:
        kernel = with_one_walk(kernel)
    main = Main(kernel, schedule, name)
    if schedule.splits > 1:
        functions, spaces = split_functions(kernel, schedule, name)
    else:
        functions, spaces = [main.emit()], main.workspaces()
    if any(stage.kind in ("total", "columns") for stage in kernel.stages):
        functions.append(Finish(kernel, schedule, f"{name}_finish", spaces).emit())
    return TritonKernel(kernel, schedule, tuple(functions), spaces, main.points, main.row)
