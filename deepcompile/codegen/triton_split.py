"""Few long rows in Triton: several programs share each row, in one launch for each stage over it.

A program takes one part of one row. At the end of a stage it leaves the state of its reductions in
a workspace; every program of the next launch joins the states of its row, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.index import Index
from ..ir.nest import Accumulate, Check, Instr, Kernel, Reduce, Stage, Store
from ..ir.ops import MONOIDS
from .triton_function import TritonFunction, Workspace, groups_of
from .triton_schedule import TritonSchedule, power_of_two
from .triton_spelling import COMBINE
from .triton_text import Extent
from .triton_tiles import Main
from .triton_walks import walk_of


@dataclass(frozen=True)
class _Part:
    """One launch: the stage over the row that it runs, or none for what comes after the last."""

    stage: int | None


def split_functions(
    kernel: Kernel, schedule: TritonSchedule, name: str
) -> tuple[list[TritonFunction], tuple[Workspace, ...]]:
    """The functions of a kernel whose rows are shared, in order, and their workspaces."""
    loops = [number for number, stage in enumerate(kernel.stages) if stage.kind == "loop"]
    parts = [_Part(number) for number in loops]
    last = loops[-1] if loops else -1
    after = [stage for stage in kernel.stages[last + 1 :] if stage.kind == "row"]
    if any(isinstance(i, (Store, Accumulate, Check)) for stage in after for i in stage.body):
        parts.append(_Part(None))
    spaces = _Split(kernel, schedule, name).spaces
    functions = [
        _Split(kernel, schedule, f"{name}_{number}").part(part) for number, part in enumerate(parts)
    ]
    return functions, spaces


class _Split(Main):
    def workspaces(self) -> tuple[Workspace, ...]:
        found = list(super().workspaces())
        for stage in self.kernel.stages:
            for (kind, arg), group in groups_of(stage.body).items():
                dtype = self.definition[arg].dtype
                for number in range(len(self.identity(kind, dtype))):
                    own = "i64" if kind in ("argmax", "argmin") and number == 1 else dtype
                    columns = Index.of(self.schedule.splits)
                    found.append(Workspace(f"st{group[0].id}_{number}", own, columns))
        return tuple(found)

    def part(self, part: _Part) -> TritonFunction:
        """The function of one launch."""
        splits = self.schedule.splits if part.stage is not None else 1
        self.line("pid = tl.program_id(0)" + (".to(tl.int64)" if self.schedule.wide else ""))
        self.line(f"x_start = pid // {splits}")
        self.line(f"chunk = pid % {splits}")
        self.line(f"x = x_start + {self.arange(self.x_size, False)}")
        self.line("lead = tl.full([1, 1], 0, tl.int32) == chunk")
        if self.kernel.parallel:
            self.define_axes([(axis.name, axis.extent) for axis in self.kernel.parallel], "x")
        end = len(self.kernel.stages) if part.stage is None else part.stage
        owned = max(
            (n for n, s in enumerate(self.kernel.stages[:end]) if s.kind == "loop"), default=-1
        )
        for number, stage in enumerate(self.kernel.stages[:end]):
            if stage.kind == "row":
                self._row(stage, number > owned)
            elif stage.kind == "loop":
                for group in groups_of(stage.body).values():
                    self._join(group)
        if part.stage is not None:
            self._shared_loop(part.stage)
        return self.function("splits" if part.stage is not None else "points", self.schedule.warps)

    def bounds(self, extent: Extent) -> list[str]:
        # There is one point a program, and never one too many.
        return [condition for condition in super().bounds(extent) if condition != "xmask"]

    def _row(self, stage: Stage, owned: bool) -> None:
        """A stage over points: its effects are left to the first program of the row, once."""
        for instr in stage.body:
            if isinstance(instr, Accumulate):
                if owned:
                    value = f"tl.broadcast_to({self.names[instr.arg]}, [1, 1])"
                    self.line(f"tl.store(ws{instr.id} + x, {value}, mask=lead)")
            elif isinstance(instr, (Store, Check)):
                if owned:
                    self._led(instr)
                elif isinstance(instr, Check):
                    self.names[instr.id] = self.names[instr.arg]
            else:
                self.instr(instr)

    def _led(self, instr: Instr) -> None:
        """An effect under the mask of the row's first program."""
        self._leading = True
        try:
            self.instr(instr)
        finally:
            self._leading = False

    _leading = False

    def conditions(self, extent: Extent) -> list[str]:
        found = super().conditions(extent)
        return [*found, "lead"] if self._leading else found

    def _shared_loop(self, number: int) -> None:
        body = walk_of(self.kernel, number)
        groups = groups_of(body)
        for group in groups.values():
            self.start_state(group)
        row, splits, width = self.i(self.row), self.schedule.splits, self.r_size
        self.line(
            f"share = (({row} + {splits - 1}) // {splits} + {width} - 1) // {width} * {width}"
        )
        self.line(f"r_end = tl.minimum((chunk + 1) * share, {row})")
        outside = dict(self.names)
        with self.block(f"for r_start in range(chunk * share, r_end, {width}):"):
            self.define_row("r_start")
            for instr in body:
                if isinstance(instr, Reduce):
                    if groups[instr.kind, instr.arg][0] is instr:
                        self.step_state(groups[instr.kind, instr.arg])
                elif isinstance(instr, Accumulate):
                    tile = self.accumulated(instr, Extent(True, True))
                    mask = ", mask=rmask" if self.mask_row else ""
                    self.line(f"tl.store(ws{instr.id} + x * {row} + r, {tile}{mask})")
                else:
                    self.instr(instr)
        self.names = outside
        for group in groups.values():
            self._leave(group)

    def _states(self, group: list[Reduce]) -> tuple[str, str, int]:
        first = group[0]
        dtype = self.definition[first.arg].dtype
        return first.kind, dtype, len(MONOIDS[first.kind].identity[dtype])

    def _leave(self, group: list[Reduce]) -> None:
        """Write what this program's part of the row came to."""
        kind, dtype, count = self._states(group)
        names = [f"s{group[0].id}_{n}" for n in range(count)]
        if count == 1:
            folded = [self.fold(kind, dtype, names[0], 1)]
        else:
            folded = [f"t{group[0].id}_{n}" for n in range(count)]
            joined = f"tl.reduce(({', '.join(names)}), 1, {COMBINE[kind]}, keep_dims=True)"
            self.line(f"{', '.join(folded)} = {joined}")
        for number, text in enumerate(folded):
            place = f"st{group[0].id}_{number} + x * {self.schedule.splits} + chunk"
            self.line(f"tl.store({place}, {text})")

    def _join(self, group: list[Reduce]) -> None:
        """The results of an earlier launch's reductions, from all parts of the row."""
        kind, dtype, _ = self._states(group)
        splits = self.schedule.splits
        width = power_of_two(splits)
        self.line(f"part = tl.arange(0, {width})[None, :]")
        for number, first in enumerate(self.identity(kind, dtype)):
            name = f"st{group[0].id}_{number}"
            mask = f", mask=part < {splits}, other={first}" if width != splits else ""
            text = f"tl.load({name} + x * {splits} + part{mask})"
            if dtype == "b1":
                text = f"({text} != 0)"
            self.line(f"s{group[0].id}_{number} = {text}")
        self.finish_state(group)
