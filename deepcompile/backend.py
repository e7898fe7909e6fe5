"""The function that `torch.compile` calls: the whole order of work, and nothing else.

Dynamo graph -> joint graph -> passes -> split -> passes -> program -> C++ -> one call a graph
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule

from . import __version__
from .budget.ledger import Ledger, ledger_of
from .budget.menu import Menu
from .budget.planned_graph import Compiled
from .budget.report import BudgetReport, warn_of_first_step
from .budget.setup import budgeted_split
from .budget.shares import Share
from .budget.split import BudgetedSplit, copied
from .cache_dir import cache_dir
from .capture.aot import compile_through_aot, interpret
from .capture.graph_breaks import end_of
from .capture.opaque_inputs import without_opaque_inputs
from .capture.torch_private import exceptions_meant_for_dynamo, input_names
from .codegen.batch import CannotTabulate, tabular_kernels
from .codegen.cpp_program import emit_program
from .codegen.program import CannotCompile, ProgramSpec, make_program
from .codegen.size_hints import size_hints
from .codegen.triton_program import emit_triton_program
from .cost.gemm import GemmChoice, default_gemm_choice
from .counted import counted_kernels, counted_split
from .errors import CompileError, CompilerMissing, DeepCompileError, for_dynamo
from .ir.batch_op import BatchOp
from .ir.blame import Place, place_of, place_of_node
from .ir.graph_printer import print_graph
from .ir.kernel_op import KernelOp
from .on_mesh import OnMesh
from .options import Options
from .passes.partition.marked import gather_again
from .pipeline.collector import collector_paused
from .pipeline.instruments import Selection, standard_instruments
from .pipeline.manager import PassManager
from .pipeline.rundir import RunDir, process_run
from .pipeline.spec import Pipeline
from .pipeline.torch_channels import tell_event, tell_kernels, torch_instruments
from .pipeline.torch_logs import set_levels
from .recording import CompiledGraph, KernelSources, Kind, externs_of, recordings, write_program
from .recording import Recording as Recording
from .recording import recording as recording
from .runtime.build import BuildFailed, build, flags_of, warn_no_compiler
from .runtime.calibrate import measured_gemm_choice
from .runtime.device import (
    cannot_generate,
    check_devices,
    device_of,
    driver_of,
    gpu_of,
    uses_triton,
)
from .runtime.measured_rates import rates_for
from .runtime.profiled import named_in_profiles
from .runtime.program import Program
from .runtime.replay import ReplayingRunner
from .runtime.triton_program import TritonRunner

_NOT_FOR_FALLBACK: tuple[type[BaseException], ...] = (
    DeepCompileError,
    *exceptions_meant_for_dynamo,
)

_NUMBERS = itertools.count()


def deepep(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """`torch.compile(model, backend="deepep", options=..., mode=...)`.

    Args:
        gm: the torch-level graph of Dynamo.
        example_inputs: its inputs, fake or real.
        options: see `deepcompile.Options`.
        mode: one of torch's modes; mapped to options.

    Raises:
        OptionError, PipelineError: for options that are none; CompileError in strict mode;
        VerificationError when `verify` finds that a pass changed the meaning of a graph.
    """
    try:
        compiler = _Compiler(Options.resolve(options, mode), ledger_of(options))
        return compiler.compile(gm, example_inputs)
    except DeepCompileError as error:
        raise for_dynamo(error) from error.__cause__


class _Compiler:
    """One compile: one graph of Dynamo, which gives one or two programs.

    Args:
        options: of the compile.
        ledger: of the graphs that share a memory budget.
        share: of it, where that is decided already.
    """

    follow_lifetimes = False
    """Whether programs take and let go of memory as they run; see `make_program`."""
    expected_sizes: Mapping[str, int] | None = None
    """Sizes that memory was planned for, by symbol."""
    planned: tuple[BudgetReport, Menu] | None = None

    def __init__(
        self, options: Options, ledger: Ledger | None = None, share: Share | None = None
    ) -> None:
        self.options = options
        self.ledger = ledger or Ledger()
        self.share = share
        set_levels(options)
        self.pipeline = Pipeline.of(options)
        self.selection = Selection(options.dump)
        self.number = next(_NUMBERS)
        self.recordings = recordings()
        self.on_mesh = OnMesh(options, ())
        self._last_trial: dict[Kind, tuple[GraphModule, GraphModule]] = {}
        self.device = torch.device("cpu")
        self.run_dir: RunDir | None = None
        if options.run_dir is not None:
            self.run_dir = process_run(
                options.run_dir,
                options=options.to_dict(),
                pipeline=str(self.pipeline),
                versions={"deepcompile": __version__, "torch": torch.__version__},
            )

    def compile(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The callable that Dynamo runs in place of `gm`."""
        self._note_graph_break(gm)
        self.device = device_of(gm, example_inputs)
        unable = cannot_generate(self.device, self.options.codegen)
        if unable is not None:
            # Eager would average no gradients over the axes of data.
            if self.options.strict or self.options.mesh is not None:
                raise CompileError(unable)
            self.note("fallback", reason=unable)
            return gm
        return self.capture(gm, example_inputs)

    def capture(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Through AOTAutograd, back into `run_joint_passes` and `compile_graph`."""
        self.on_mesh = OnMesh(self.options, example_inputs, input_names(gm))
        joint = f"g{self.number}_joint"
        began, start = time.time(), time.perf_counter()
        compiled = compile_through_aot(
            gm,
            example_inputs,
            compile_graph=self.compile_graph,
            run_joint_passes=self.run_joint_passes,
            split_joint=counted_split(self._budgeted_split(), self.options, joint, self.note),
            options=self.options,
            note=self.note,
        )
        seconds = time.perf_counter() - start
        self.note("captured", number=self.number, began=began, seconds=seconds)
        if self.planned is None or self.share is not None:
            return compiled
        again = partial(self._compiled_again, gm, list(example_inputs))
        planned = Compiled(compiled, *self.planned, self.note)
        return self.ledger.entered(planned, again, example_inputs)

    def _compiled_again(
        self, gm: GraphModule, example_inputs: Sequence[Any], share: Share
    ) -> Compiled:
        compiler = _Compiler(self.options, self.ledger, share)
        compiler.device = self.device
        run = compiler.capture(gm, example_inputs)
        if compiler.planned is None:
            raise CompileError("a graph did not compile once more for its memory_budget")
        return Compiled(run, *compiler.planned, compiler.note)

    def _budgeted_split(self) -> BudgetedSplit | None:
        decided = self._budget_decided
        return budgeted_split(
            self.options, self.device, self._trial_program, decided, self.ledger, self.share
        )

    def _trial_program(
        self,
        gm: GraphModule,
        kind: Kind,
        follow_lifetimes: bool,
        expected: Mapping[str, int] | None = None,
    ) -> ProgramSpec:
        """What would become of a graph, which stays as it is; the run directory has no trace of it.

        What passes make of the last graph of a kind is kept: it is asked for once with memory that
        follows lifetimes and once without.
        """
        source, graph = self._last_trial.get(kind, (None, None))
        if graph is None or source is not gm:
            manager = PassManager(self.pipeline.graph, (), self.options)
            graph = manager.run(without_opaque_inputs(copied(gm))[0], kind, f"trial_{kind}")
            self._last_trial[kind] = gm, graph
        triton = uses_triton(self.device, self.options.codegen)
        gemm = GemmChoice(onednn=False) if triton else self._gemm_choice()
        return make_program(graph, gemm, follow_lifetimes=follow_lifetimes, expected=expected)

    def _program(self, graph: GraphModule, gemm: GemmChoice, name: str) -> ProgramSpec:
        return make_program(
            graph,
            gemm,
            follow_lifetimes=self.follow_lifetimes,
            expected=self.expected_sizes,
            is_generated=counted_kernels(self.options, name, self.note),
        )

    def _budget_decided(self, report: BudgetReport, menu: Menu) -> None:
        self.follow_lifetimes = report.follow_lifetimes
        self.expected_sizes = report.bucket.sizes
        self._last_trial.clear()
        self.planned = report, menu
        if report.exceeds:
            warn_of_first_step(report)
        self.note("memory-budget", **report.facts())
        for record in self.recordings:
            record.budgets.append(report)
        if self.run_dir is not None:
            self.run_dir.memory(f"g{self.number}", report.to_dict())

    def note(self, event: str, /, **fields: Any) -> None:
        """Record an event in the run directory and for `explain`."""
        tell_event(event, fields)
        for record in self.recordings:
            record.events.append((event, fields))
        if self.run_dir is not None:
            self.run_dir.event(event, **_renamed(fields))

    def report(self, subject: str, document: Mapping[str, Any]) -> None:
        """Keep what a pass decided for a graph, in the run directory and for `explain`."""
        assert subject == "sharding", subject
        for record in self.recordings:
            record.shardings.append(document)
        if self.run_dir is not None:
            self.run_dir.sharding(str(document["graph"]), document)

    def _note_graph_break(self, gm: GraphModule) -> None:
        """Record why Dynamo's graph ends before the user's function does."""
        found = end_of(gm)
        if found is not None:
            self.note("graph-break", **found)

    def _run_passes(
        self, phase: Sequence[Any], gm: GraphModule, kind: Any, name: str, first_index: int = 1
    ) -> GraphModule:
        instruments = standard_instruments(
            self.options.verify,
            self.run_dir,
            print_graph,
            sink=self.note,
            selection=self.selection,
        )
        instruments += torch_instruments(print_graph)
        reports = self.report if self.recordings or self.run_dir is not None else None
        manager = PassManager(phase, instruments, self.options, sink=self.note, reports=reports)
        try:
            return manager.run(gm, kind, name, first_index=first_index)
        except CompileError as error:
            place = place_of(error)
            raise CompileError(error.detail, origin=place.origin, source=place.source) from error

    def _run_passes_on_bodies(self, graph: GraphModule, kind: Any, name: str) -> None:
        """Compile what each batch node does for one row like a graph of its own.

        Raises:
            CannotTabulate: when one of them does not become kernels only.
        """
        for node in graph.graph.nodes:
            op = node.target
            if isinstance(op, BatchOp):
                body = self._run_passes(self.pipeline.graph, op.body, kind, f"{name}.{op.name}")
                tabular_kernels(body)
                node.target = op.with_body(body)

    def _graph_name(self, kind: str) -> str:
        name = f"g{self.number}_{kind}"
        return self.run_dir.unique_graph_name(name) if self.run_dir is not None else name

    def run_joint_passes(self, joint: GraphModule) -> GraphModule:
        """Passes on forward and backward together, before they are split."""
        name = self._graph_name("joint")
        self.on_mesh.enter(joint)
        joint = self._run_passes(self.pipeline.joint, joint, "joint", name)
        gather_again(joint.graph)
        return joint

    def compile_graph(
        self,
        gm: GraphModule,
        example_inputs: Sequence[Any],
        *,
        kind: Kind,
        static_input_idxs: Sequence[int] = (),
    ) -> Callable[..., Any]:
        """Passes, code generation and build of one graph; called by the capture."""
        compiled = CompiledGraph(self._graph_name(kind), kind)
        for record in self.recordings:
            record.graphs.append(compiled)
            compiled.source = gm
        gm, with_opaque = without_opaque_inputs(gm)
        with collector_paused():
            gm, done = self._lowered(gm, compiled)
            run = with_opaque(self._compile_graph(gm, compiled, kind, done))
        return self.on_mesh.run(named_in_profiles(run, compiled.name), gm, compiled.name, kind)

    def _lowered(self, gm: GraphModule, compiled: CompiledGraph) -> tuple[GraphModule, int]:
        """The graph that ranks of a mesh agree on, and how many passes made it.

        Graphs without gradients never see the joint phase: one of a mesh sees it here, so that
        what runs in place of a program that cannot be made is what the other ranks run.
        """
        if compiled.kind != "inference":
            return gm, 0
        if not self.on_mesh.enter(gm):
            return gm, 0
        start = time.perf_counter()
        gm = self._run_passes(self.pipeline.joint, gm, compiled.kind, compiled.name)
        compiled.seconds["passes"] = time.perf_counter() - start
        return gm, len(self.pipeline.joint)

    def _compile_graph(
        self, gm: GraphModule, compiled: CompiledGraph, kind: Kind, done: int
    ) -> Callable[..., Any]:
        start = time.perf_counter()
        graph = self._graph_after_passes(gm, kind, compiled.name, done)
        spent = time.perf_counter() - start
        compiled.seconds["passes"] = compiled.seconds.get("passes", 0.0) + spent
        try:
            return self._generate(graph, compiled)
        except CannotCompile as error:
            return self._fall_back(gm, compiled, str(error), error)
        except CompilerMissing as error:
            warn_no_compiler(str(error))
            return self._fall_back(gm, compiled, str(error), error)
        except BuildFailed as error:
            reason = f"the C++ compiler refused the code: {error}"
            return self._fall_back(gm, compiled, reason, error)
        except _NOT_FOR_FALLBACK:
            raise
        except Exception as error:
            return self._fall_back(gm, compiled, f"{type(error).__name__}: {error}", error)

    def _graph_after_passes(self, gm: GraphModule, kind: Kind, name: str, done: int) -> GraphModule:
        # Graphs without gradients never see the joint phase: both phases run here.
        phase = self.pipeline.graph
        if kind == "inference" and not done:
            phase = (*self.pipeline.joint, *phase)
        graph = self._run_passes(phase, gm, kind, name, first_index=1 + done)
        try:
            self._run_passes_on_bodies(graph, kind, name)
            return graph
        except CannotTabulate as error:
            self.note("batch-rejected", graph=name, reason=str(error))
        phase = tuple(pass_ for pass_ in phase if pass_.name != "batch-updates")
        return self._run_passes(phase, gm, kind, name)

    def _generate(self, graph: GraphModule, compiled: CompiledGraph) -> Callable[..., Any]:
        if uses_triton(self.device, self.options.codegen):
            return self._generate_triton(graph, compiled)
        start = time.perf_counter()
        compiled.spec = self._program(graph, self._gemm_choice(), compiled.name)
        compiled.code = emit_program(compiled.spec, keeps_order=self.options.deterministic)
        compiled.externs = externs_of(graph, compiled.spec)
        compiled.seconds["codegen"] = time.perf_counter() - start
        codes = [compiled.code] * len(compiled.code.kernels)
        self._record_program(compiled, graph, "source.cpp", codes)
        start = time.perf_counter()
        library = build(
            compiled.code.source, self.options, self.note, large=compiled.code.has_long_kernels
        )
        compiled.program = Program(compiled.spec, compiled.code, library, self.options.threads)
        compiled.seconds["build"] = time.perf_counter() - start
        compiled.cached = library.cached
        self.note("cache", graph=compiled.name, hit=library.cached)
        self._note_compiled(compiled)
        return compiled.program

    def _generate_triton(self, graph: GraphModule, compiled: CompiledGraph) -> Callable[..., Any]:
        start = time.perf_counter()
        check_devices(graph, self.device)
        compiled.spec = self._program(graph, GemmChoice(onednn=False), compiled.name)
        hints, contracts = size_hints(graph), not self.options.deterministic
        code = emit_triton_program(compiled.spec, hints, gpu_of(self.device), contracts=contracts)
        compiled.externs = externs_of(graph, compiled.spec)
        compiled.seconds["codegen"] = time.perf_counter() - start
        for op, kernel in zip(compiled.spec.kernels, code.kernels, strict=True):
            if isinstance(kernel, str):
                self._run_kernel_as_aten(graph, compiled, op, kernel)
        start = time.perf_counter()
        folder = cache_dir(self.options) / "triton" if self.options.cache else None
        driver = driver_of(self.device)
        runner = TritonRunner(compiled.spec, code, driver, self.options, folder, self.note)
        runner.prepare(hints)
        compiled.seconds["build"] = time.perf_counter() - start
        self._record_program(compiled, graph, "source.py", list(runner.kernels))
        self._note_compiled(compiled)
        if self.options.cuda_graphs:
            return ReplayingRunner(runner, compiled.name, self.note)
        return runner

    def _run_kernel_as_aten(
        self, graph: GraphModule, compiled: CompiledGraph, op: KernelOp, reason: str
    ) -> None:
        """Record that a kernel has no Triton form; in strict mode refuse it."""
        node = next((node for node in graph.graph.nodes if node.target is op), None)
        place = Place(next(iter(op.origin.lines), None), None)
        if node is not None:
            place = place_of_node(node)
        if self.options.strict:
            detail = f"kernel {op.nest.name} cannot be written in Triton: {reason}"
            raise CompileError(detail, origin=place.origin, source=place.source)
        self.note(
            "fallback",
            graph=compiled.name,
            kernel=op.nest.name,
            reason=f"kernel {op.nest.name} runs as ATen ops: {reason}",
            origin=place.origin,
        )

    def _gemm_choice(self) -> GemmChoice:
        """Which library multiplies matrices; the table's answer wherever bits must repeat."""
        if self.options.tune != "measure" or self.options.deterministic:
            return default_gemm_choice(by_layout=self.options.deterministic)
        with unset_fake_temporarily():
            return measured_gemm_choice(torch.get_num_threads())

    def _fall_back(
        self, gm: GraphModule, compiled: CompiledGraph, reason: str, error: Exception
    ) -> Callable[..., Any]:
        """Run the graph as eager would, recorded; in strict mode refuse."""
        place = place_of(error)
        if self.options.strict:
            raise CompileError(reason, origin=place.origin, source=place.source) from error
        compiled.fallback, compiled.spec, compiled.code = reason, None, None
        self.note(
            "fallback",
            graph=compiled.name,
            graph_kind=compiled.kind,
            reason=reason,
            origin=place.origin,
        )
        return interpret(gm)

    def _record_program(
        self, compiled: CompiledGraph, graph: GraphModule, file: str, codes: Sequence[Any]
    ) -> None:
        for target, count in Counter(name for name, _ in compiled.externs).items():
            origins = dict.fromkeys(o for name, o in compiled.externs if name == target and o)
            self.note("extern", graph=compiled.name, op=target, count=count, origins=list(origins))
        tell_kernels(compiled.name, KernelSources(compiled, codes))
        if self.run_dir is not None:
            rates = rates_for(self.options, self.device)
            code = compiled.code
            large = code is not None and code.has_long_kernels
            flags = " ".join(flags_of(self.options, large=large)) if code is not None else ""
            try:
                write_program(self.run_dir, compiled, graph, file, codes, rates, flags)
            except Exception as error:  # an estimate that fails must not stop the compile
                reason = f"{type(error).__name__}: {error}"
                self.note("record-failed", graph=compiled.name, error=reason)

    def _note_compiled(self, compiled: CompiledGraph) -> None:
        self.note(
            "compiled",
            graph=compiled.name,
            graph_kind=compiled.kind,
            kernels=len(compiled.kernels),
            externs=len(compiled.externs),
            cached=compiled.cached,
            seconds=compiled.seconds,
        )


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields under names that an event line does not use itself."""
    return {("graph_kind" if name == "kind" else name): value for name, value in fields.items()}
