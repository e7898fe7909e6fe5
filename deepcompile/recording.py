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
from .codegen.triton_kernel import TritonKernel
from .codegen.triton_table import TritonTable
from .cost.rates import Rates
from .ir.kernel_op import KernelOp
from .ir.nest_text import print_kernel
from .ir.origins import origin_of
from .pipeline.rundir import RunDir
from .program_facts import kernel_facts, launch_facts, program_facts, sizes_of, support_files
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


@dataclass(frozen=True)
class KernelSources:
    """The kernels that a graph calls: name, the user's lines, source; made when read.

    Args:
        codes: of the functions of the program, by their numbers.
    """

    compiled: CompiledGraph
    codes: Sequence[CppProgram | TritonKernel | TritonTable | str]

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        assert self.compiled.spec is not None
        for step in self.compiled.spec.steps:
            if isinstance(step, (KernelStep, TableStep)):
                op = step.op
                source = _source(self.codes[step.function], step.function)
                yield op.nest.name, tuple(op.origin.lines), source


def write_program(
    run_dir: RunDir,
    compiled: CompiledGraph,
    graph: GraphModule,
    file: str,
    codes: Sequence[CppProgram | TritonKernel | TritonTable | str],
    rates: Rates,
    flags: str = "",
) -> None:
    """Write the kernels that a graph calls, and what its program costs, into a run directory.

    Args:
        graph: that the program was made of.
        file: the name of a kernel's source there.
        codes: of the functions of the program, by their numbers.
        rates: of the device.
        flags: of the C++ compiler.
    """
    spec = compiled.spec
    assert spec is not None
    sizes = sizes_of(graph, spec)
    kept: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for number, step in enumerate(spec.steps):
        if not isinstance(step, (KernelStep, TableStep)):
            continue
        op, code = step.op, codes[step.function]
        facts = kernel_facts(step, sizes, rates)
        name = run_dir.kernel(
            f"{compiled.name}.{op.nest.name}",
            {file: _source(code, step.function), "nest.txt": print_kernel(op.nest)},
            {
                "graph": compiled.name,
                "step": number,
                "ops": list(op.origin.ops),
                "origins": list(op.origin.lines),
                "function": f"k{step.function}",
                **facts,
                "launch": launch_facts(step, spec, sizes, code, flags),
            },
        )
        kept[number] = name, facts
    if kept:
        for name, text in support_files(flags != "").items():
            run_dir.support(name, text)
    facts = program_facts(graph, spec, sizes, rates, kept)
    run_dir.program(compiled.name, {"graph": compiled.name, "kind": compiled.kind, **facts})


def _source(code: CppProgram | TritonKernel | TritonTable | str, function: int) -> str:
    if isinstance(code, CppProgram):
        return code.kernels[function]
    return code if isinstance(code, str) else code.source
