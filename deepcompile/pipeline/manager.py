"""Runs the passes of one phase over one graph; instruments look on."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from deepcompile.errors import CompileError, DeepCompileError, PipelineError, VerificationError
from deepcompile.options import Options
from deepcompile.pipeline.context import Context, Counters, EventSink, ReportSink, process_counters
from deepcompile.pipeline.protocol import GraphKind, Pass
from deepcompile.pipeline.spec import print_pass

if TYPE_CHECKING:
    from torch.fx import GraphModule

Status = Literal["changed", "unchanged", "skipped", "failed"]


@dataclass(frozen=True)
class Application:
    """One pass applied to one graph: what instruments see.

    `index` counts the passes over this graph from 1 (0 is the state before the first); `number` is
    the position among all skippable applications of the process, None for required passes and
    skipped ones. `began` is a time of the system's clock. `before` and `after` are the same object
    unless `status` is "changed".
    """

    graph_name: str
    kind: GraphKind
    index: int
    pass_: Pass
    before: GraphModule
    after: GraphModule
    status: Status
    reason: str = ""
    number: int | None = None
    began: float = 0.0
    seconds: float = 0.0
    stats: Mapping[str, int | float] = field(default_factory=dict)
    rewrites: Mapping[str, int] = field(default_factory=dict)
    properties: frozenset[str] = frozenset()


class Instrument(Protocol):
    """Looks at the graph before the first pass and at each application. Changes nothing.

    `after_pass` may raise `VerificationError`: the application then counts as failed, and all
    instruments see it again as such. So an instrument that verifies stands before those that keep
    what they saw.
    """

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """Called once per graph and phase, before the first pass."""
        ...

    def after_pass(self, application: Application) -> None:
        """Called after each pass, also when it was skipped or failed."""
        ...


class PassManager:
    """An ordered list of passes with the instruments that watch them."""

    def __init__(
        self,
        passes: Sequence[Pass],
        instruments: Sequence[Instrument] = (),
        options: Options | None = None,
        *,
        sink: EventSink | None = None,
        counters: Counters | None = None,
        reports: ReportSink | None = None,
    ) -> None:
        self.passes = tuple(passes)
        self.instruments = tuple(instruments)
        self.options = options or Options()
        self._sink = sink
        self._counters = counters or process_counters()
        self._reports = reports

    def run(
        self,
        graph: GraphModule,
        kind: GraphKind,
        graph_name: str,
        *,
        properties: frozenset[str] = frozenset(),
        first_index: int = 1,
    ) -> GraphModule:
        """`graph` after all passes. `properties` hold at its start.

        States are numbered from `first_index`, for a graph whose phases several managers run.

        A pass that raises is skipped and the graph before it kept, with a `pass-failed` event;
        in strict mode `CompileError` is raised. Failed verification raises `VerificationError` in
        strict and in verify mode. A pass whose `requires` do not hold raises `PipelineError`,
        unless a pass that would have established them was skipped: then it is skipped too.
        """
        for instrument in self.instruments:
            instrument.before_passes(graph_name, kind, graph)
        held, lost = properties, frozenset[str]()
        for index, pass_ in enumerate(self.passes, start=first_index):
            missing = pass_.requires - held
            if missing - lost:
                raise PipelineError(
                    f"pass {pass_.name!r} needs a graph that is "
                    f"{', '.join(sorted(missing - lost))}; a pass that establishes this goes first"
                )
            context = Context(
                pass_.name,
                kind,
                self.options,
                self._counters,
                self._sink,
                graph_name,
                self._reports,
            )
            application = self._apply(pass_, graph, context, index, graph_name, missing)
            if application.status in ("changed", "unchanged"):
                held |= pass_.establishes
            else:
                lost |= pass_.establishes
            graph = application.after
        return graph

    def _apply(
        self,
        pass_: Pass,
        graph: GraphModule,
        context: Context,
        index: int,
        graph_name: str,
        missing: frozenset[str],
    ) -> Application:
        began = time.time()

        def application(status: Status, after: GraphModule = graph, **fields: Any) -> Application:
            return Application(
                graph_name, context.kind, index, pass_, graph, after, status,
                rewrites=context.rewrites, properties=pass_.establishes, began=began, **fields,
            )  # fmt: skip

        number = None
        skip = f"needs {', '.join(sorted(missing))}, which was left out" if missing else ""
        if pass_.skippable and pass_.name in self.options.disable:
            skip = "disabled"
        elif pass_.skippable and not skip:
            number = self._counters.next_application(self.options.opt_limit)
            skip = (
                "" if number is not None else f"past the limit of {self.options.opt_limit} passes"
            )
        if skip:
            return self._observe(application("skipped", reason=skip))

        start = time.perf_counter()
        try:
            result = pass_.run(graph, context)
        except Exception as error:
            seconds = time.perf_counter() - start
            self._failed(pass_, graph_name, error)
            reason = f"{type(error).__name__}: {error}"
            return self._observe(
                application("failed", reason=reason, number=number, seconds=seconds)
            )
        seconds = time.perf_counter() - start
        if result.changed and result.graph is graph:
            raise PipelineError(
                f"pass {pass_.name!r} says it changed the graph but returned the same object; "
                "a pass rewrites a copy"
            )
        status: Status = "changed" if result.changed else "unchanged"
        after = result.graph if result.changed else graph
        done = application(status, after, number=number, seconds=seconds, stats=dict(result.stats))
        try:
            return self._observe(done)
        except VerificationError as error:
            self._failed(pass_, graph_name, error, verifying=self.options.verify)
            return self._observe(
                application("failed", reason=error.detail, number=number, seconds=seconds)
            )

    def _observe(self, application: Application) -> Application:
        for instrument in self.instruments:
            instrument.after_pass(application)
        return application

    def _failed(
        self, pass_: Pass, graph_name: str, error: Exception, *, verifying: bool = False
    ) -> None:
        """Record the failure; raise it when nothing may go wrong silently."""
        if self._sink is not None:
            self._sink(
                "pass-failed",
                **{"pass": pass_.name, "graph": graph_name},
                error=f"{type(error).__name__}: {error}",
                traceback="".join(traceback.format_exception(error)),
            )
        if not (self.options.strict or verifying):
            return
        if isinstance(error, DeepCompileError):
            raise error
        raise CompileError(
            f"pass {print_pass(pass_)!r} failed on graph {graph_name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
