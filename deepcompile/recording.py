"""What became of each graph, collected for `explain`, tests and tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.fx import GraphModule

from .budget.report import BudgetReport
from .codegen.cpp_program import CppProgram
from .codegen.program import ProgramSpec
from .codegen.steps import ExternStep, KernelStep, TableStep
from .ir.kernel_op import KernelOp
from .ir.nest_text import print_kernel
from .ir.origins import origin_of
from .pipeline.rundir import RunDir
from .runtime.program import Program

Kind = Literal["inference", "forward", "backward"]


@dataclass
class CompiledGraph:
    """What became of one graph: for `explain`, tests and tools.

    Attributes:
        name: unique within the process, e.g. `g0_forward`.
        spec: slots and steps; None when the graph runs in eager.
        fallback: why it runs in eager, else None.
        cached: whether the library came from the cache on disk.
        seconds: time of passes, code generation and the C++ compiler.
        externs: the calls of ATen, as op and user line.
        source: the graph before its passes, kept inside `recording()` only.
    """

    name: str
    kind: Kind
    source: GraphModule | None = None
    spec: ProgramSpec | None = None
    code: CppProgram | None = None
    program: Program | None = None
    fallback: str | None = None
    cached: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    externs: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def kernels(self) -> list[KernelOp]:
        """The kernel of each call, in order."""
        if self.spec is None:
            return []
        return [step.op for step in self.spec.steps if isinstance(step, (KernelStep, TableStep))]


@dataclass
class Recording:
    """Graphs and events of the compiles inside `recording()`, and what passes decided for them."""

    graphs: list[CompiledGraph] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    budgets: list[BudgetReport] = field(default_factory=list)
    shardings: list[Mapping[str, Any]] = field(default_factory=list)


_RECORDINGS: ContextVar[tuple[Recording, ...]] = ContextVar("deepcompile_recordings", default=())


@contextmanager
def recording() -> Iterator[Recording]:
    """Collect what is compiled inside the block."""
    record = Recording()
    token = _RECORDINGS.set((*_RECORDINGS.get(), record))
    try:
        yield record
    finally:
        _RECORDINGS.reset(token)


def recordings() -> tuple[Recording, ...]:
    """Those that are open here."""
    return _RECORDINGS.get()


def externs_of(graph: GraphModule, spec: ProgramSpec) -> list[tuple[str, str | None]]:
    """The calls of ATen in a program, as op and user line."""
    nodes = {node.name: node for node in graph.graph.nodes}
    found = []
    for step in spec.steps:
        if isinstance(step, ExternStep) and step.name in nodes:
            node = nodes[step.name]
            target = node.target if not isinstance(node.target, KernelOp) else "kernel as ATen ops"
            found.append((str(target), origin_of(node)))
    return found


def write_kernels(
    run_dir: RunDir, compiled: CompiledGraph, file: str, sources: Sequence[str]
) -> None:
    """Write the kernels that a graph calls into a run directory.

    Args:
        file: the name of a kernel's source there.
        sources: of the functions of the program, by their numbers.
    """
    assert compiled.spec is not None
    for step in compiled.spec.steps:
        if not isinstance(step, (KernelStep, TableStep)):
            continue
        op = step.op
        run_dir.kernel(
            f"{compiled.name}.{op.nest.name}",
            {file: sources[step.function], "nest.txt": print_kernel(op.nest)},
            {
                "graph": compiled.name,
                "ops": list(op.origin.ops),
                "origins": list(op.origin.lines),
                "function": f"k{step.function}",
            },
        )
