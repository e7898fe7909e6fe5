"""C++ of one kernel: a work-sharing body over the parallel axes, and a finish for accumulators."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.index import Index, product
from ..ir.monoids import MONOIDS
from ..ir.nest import Kernel, Stage, Store, operands
from .cpp_dtypes import C_SCALAR, C_STORAGE, C_VECTOR
from .cpp_loops import Loops
from .cpp_text import Scope
from .schedule import expand, plan

WORK_OF_A_SUM = 2
"""What adding one element counts for, where the rest of a kernel must not count."""


@dataclass(frozen=True)
class CppKernel:
    """A kernel as C++.

    Attributes:
        body: the text of functions `NAME_body` and `NAME(void **buffers, const i64 *sizes, char
            *workspace, i64 threads, int *failed)`; `*failed` is set when a check of an index fails.
        workspace: bytes of scratch for each thread, as a size expression.
    """

    body: str
    workspace: Index


def emit_kernel(kernel: Kernel, name: str, *, keeps_order: bool = False) -> CppKernel:
    """The C++ of `kernel` under the function name `name`.

    Args:
        keeps_order: sums add in the order of the axes and in an order of their own beyond that, a
            function of their length and of how many threads there are.
    """
    expanded = expand(kernel, keeps_order=keeps_order)
    schedule = plan(expanded, keeps_order=keeps_order)
    return Emitter(expanded, schedule, name, keeps_order=keeps_order).emit()


class Emitter(Loops):
    """Puts one kernel together."""

    def emit(self) -> CppKernel:
        """The text of the kernel."""
        self.lines = []
        self._unpack()
        if self.accumulators:
            self.line("char *mine = workspace + tid * stride;")
            self._start_accumulators()
        self._shared_uniforms()
        if self.vector is not None and not self.vector_in_rows:
            self._parallel_vector()
        else:
            self._points()
        if self.accumulators:
            self._flush_totals()
        body = "\n".join(self.lines)
        finish = self._finish()
        struct = (
            f"struct {self.name}_call {{ void **buffers; const i64 *sizes; char *workspace; "
            "i64 stride; int *failed; };"
        )
        head = f"static void {self.name}_body(void *call_, i64 tid, i64 threads) {{"
        unpack = (
            f"  const {self.name}_call &call = *({self.name}_call *)call_;\n"
            "  void *const *buffers = call.buffers; const i64 *sizes = call.sizes;\n"
            "  char *workspace = call.workspace; const i64 stride = call.stride;\n"
            "  int *failed = call.failed; (void)failed;\n"
            "  (void)buffers; (void)sizes; (void)workspace; (void)stride; (void)tid; (void)threads;"
        )
        workspace = self._workspace()
        units, work = self._units(), self._c(self._work())
        main = [
            f'extern "C" void {self.name}(void **buffers, const i64 *sizes, char *workspace, '
            "i64 threads, int *failed) {",
            *self._size_lines(),
            f"  const i64 units = {units}, work = {work};",
            "  i64 team = work / 32768 + 1;",
            "  team = team < threads ? team : threads;",
            "  team = team < units ? team : units;",
            "  if (team < 1) team = 1;",
            f"  {self.name}_call call = "
            f"{{buffers, sizes, workspace, {self._c(workspace)}, failed}};",
            f"  dc_parallel({self.name}_body, &call, team);",
            finish,
            "}",
        ]
        text = "\n".join([struct, head, unpack, body, "}", *[m for m in main if m]])
        return CppKernel(text, workspace)

    def _size_lines(self) -> list[str]:
        lines = [
            f"  const i64 {size} = sizes[{number}]; (void){size};"
            for number, size in enumerate(self.kernel.sizes)
        ]
        return [*lines, "  (void)sizes;"]

    def _unpack(self) -> None:
        self.lines += self._size_lines()
        self.lines += self._buffer_lines()

    def _buffer_lines(self) -> list[str]:
        lines = []
        for number, buffer in enumerate(self.kernel.buffers):
            const = "const " if buffer.role == "in" else ""
            kind = f"{const}{C_STORAGE[buffer.dtype]} *__restrict"
            lines.append(
                f"  {kind} {buffer.name} = ({kind})buffers[{number}]; (void){buffer.name};"
            )
        return lines

    def _work(self) -> Index:
        total = product([axis.extent for axis in self.kernel.axes])
        if self.keeps_order and self.accumulators:
            # How many threads share the points decides which of them are added first.
            return total * WORK_OF_A_SUM
        return total * max(1, round(self.schedule.cost / 4))

    def _finish(self) -> str:
        late = [stage for stage in self.kernel.stages if stage.kind in ("total", "columns")]
        if not late:
            return ""
        self.lines, self.depth, self.scope = [], 1, Scope()
        self.lines += self._buffer_lines()
        self.line("const i64 stride = call.stride; (void)stride;")
        offsets = self._offsets()
        for accumulate in self.accumulators:
            if accumulate.id in self.columns:
                continue
            dtype = self._accumulator_dtype(accumulate)
            kind, place = C_SCALAR[dtype], self._c(offsets[accumulate.id])
            combine = MONOIDS[accumulate.kind].combine
            self.line(f"{kind} acc{accumulate.id} = *({kind} *)(workspace + {place});")
            self.line(
                f"for (i64 t = 1; t < team; ++t) acc{accumulate.id} = "
                f"{combine}(acc{accumulate.id}, *({kind} *)(workspace + t * stride + {place}));"
            )
            self._name(accumulate.id, f"({C_SCALAR[accumulate.dtype]})acc{accumulate.id}", False)
        for stage in late:
            if stage.kind == "total":
                for instr in stage.body:
                    self._instr(instr)
            else:
                self._finish_columns(stage, offsets)
        return "\n".join(self.lines)

    def _finish_columns(self, stage: Stage, offsets: dict[int, Index]) -> None:
        hoisted = [i for i in stage.body if not isinstance(i, Store) and not self._loopy(i)]
        for instr in hoisted:
            self._instr(instr)
        rest = [instr for instr in stage.body if instr not in hoisted]
        used = [n for n in self.columns if any(n in operands(i) for i in rest)]

        def body() -> None:
            position = self._row_position()
            for number in used:
                accumulate = self.columns[number]
                kind = C_STORAGE[accumulate.dtype]
                combine = MONOIDS[accumulate.kind].combine
                vector = self._is_vector_place()
                place = f"workspace + {self._c(offsets[number])}"
                register = (C_VECTOR if vector else C_SCALAR)[accumulate.dtype]
                name = f"c{number}"
                self.line(
                    f"{register} {name} = {self._row_load(f'(({kind} *)({place}))', position)};"
                )
                with self.block("for (i64 t = 1; t < team; ++t)"):
                    other = self._row_load(f"(({kind} *)({place} + t * stride))", position)
                    self.line(f"{name} = {combine}({name}, {other});")
                self._name(number, name, vector)
            for instr in rest:
                self._instr(instr)

        self._row_loops(body, [])
