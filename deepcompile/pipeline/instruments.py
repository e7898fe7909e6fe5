"""What looks on while passes run: verify, time, count ops, keep each state on disk."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deepcompile.errors import VerificationError
from deepcompile.pipeline.context import EventSink
from deepcompile.pipeline.manager import Application
from deepcompile.pipeline.modules import modules_of
from deepcompile.pipeline.protocol import GraphKind
from deepcompile.pipeline.spec import print_pass

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from deepcompile.pipeline.rundir import RunDir


class PrintGraph(Protocol):
    """Makes the text of a graph of a kind."""

    def __call__(self, graph: GraphModule, *, kind: GraphKind) -> str: ...


def op_counts(graph: GraphModule) -> Counter[str]:
    """How often each op is called, by its printed name."""
    return Counter(
        str(node.target) if node.op != "call_function" else _target_name(node.target)
        for node in graph.graph.nodes
        if node.op in ("call_function", "call_module", "call_method")
    )


def _target_name(target: Any) -> str:
    if hasattr(target, "nest"):
        return "kernel"
    if hasattr(target, "_schema"):  # an OpOverload prints as aten.add.Tensor
        return str(target)
    return str(getattr(target, "__name__", target))


def op_delta(before: GraphModule, after: GraphModule) -> dict[str, int]:
    """Ops that `after` has more (positive) or fewer (negative) of than `before`."""
    counts = op_counts(after)
    counts.subtract(op_counts(before))
    return {name: count for name, count in sorted(counts.items()) if count}


class Timer:
    """Seconds per pass name, summed over graphs; `times` is the result."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """Nothing to do: the manager measures."""

    def after_pass(self, application: Application) -> None:
        """Add the seconds that the manager measured."""
        name = application.pass_.name
        self.times[name] = self.times.get(name, 0.0) + application.seconds


class ChangedCounter:
    """Op-count deltas of the passes that changed something; `changes` is the result, in order."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str, dict[str, int]]] = []

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """Nothing to do."""

    def after_pass(self, application: Application) -> None:
        """Count when the graph changed."""
        if application.status == "changed":
            delta = op_delta(application.before, application.after)
            self.changes.append((application.graph_name, application.pass_.name, delta))


@dataclass(frozen=True)
class Selection:
    """Which states are kept as text.

    Attributes:
        dump: "none", "changed", or "all" for unchanged ones too.
        graphs: graphs of whose names this finds nothing are not recorded at all.
        passes: of passes in whose names it finds nothing only metadata is kept.
    """

    dump: str = "changed"
    graphs: re.Pattern[str] | None = None
    passes: re.Pattern[str] | None = None

    def has_graph(self, name: str) -> bool:
        """Whether a graph is recorded."""
        return self.graphs is None or self.graphs.search(name) is not None

    def has_text(self, application: Application) -> bool:
        """Whether the state after a pass is kept as text."""
        if self.dump == "none" or (self.dump == "changed" and application.status != "changed"):
            return False
        return self.passes is None or self.passes.search(application.pass_.name) is not None


class Dumper:
    """Keeps every state in the run directory: text when it changed, metadata always."""

    def __init__(
        self, run_dir: RunDir, print_graph: PrintGraph, selection: Selection | None = None
    ) -> None:
        self._run_dir = run_dir
        self._print_graph = print_graph
        self._selection = selection or Selection()
        self._last: tuple[GraphModule, str] | None = None

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """Keep state 000, once per graph."""
        if not self._selection.has_graph(graph_name) or self._run_dir.has_graph(graph_name):
            return
        meta = {
            "kind": kind,
            "status": "input",
            "ops": dict(op_counts(graph)),
            "modules": modules_of(graph),
        }
        text = None
        if self._selection.dump != "none":
            text = self._text(graph, graph_name, kind)
        self._run_dir.graph_state(graph_name, 0, "input", text, meta)

    def after_pass(self, application: Application) -> None:
        """Keep the state after this pass."""
        name, text = application.graph_name, None
        if not self._selection.has_graph(name):
            return
        if self._selection.has_text(application):
            text = self._text(application.after, name, application.kind)
        meta = describe(application)
        self._run_dir.graph_state(name, application.index, application.pass_.name, text, meta)

    def _text(self, graph: GraphModule, graph_name: str, kind: GraphKind) -> str:
        if self._last is None or self._last[0] is not graph:
            self._last = graph, self._printed(graph, graph_name, kind)
        return self._last[1]

    def _printed(self, graph: GraphModule, graph_name: str, kind: GraphKind) -> str:
        try:
            return self._print_graph(graph, kind=kind)
        except Exception as error:  # a graph we cannot print must not stop the compile
            reason = f"{type(error).__name__}: {error}"
            self._run_dir.event("print-failed", graph=graph_name, error=reason)
            return f"# cannot be printed: {reason}\n# torch's own text:\n{graph.graph}\n"


def describe(application: Application) -> dict[str, Any]:
    """An application as JSON-ready metadata."""
    meta: dict[str, Any] = {
        "pass": print_pass(application.pass_),
        "kind": application.kind,
        "status": application.status,
        "changed": application.status == "changed",
        "number": application.number,
        "began": application.began,
        "ms": round(application.seconds * 1e3, 3),
        "stats": dict(application.stats),
        "rewrites": dict(application.rewrites),
        "properties": sorted(application.properties),
    }
    if application.reason:
        meta["reason"] = application.reason
    if application.status == "changed":
        meta["op_delta"] = op_delta(application.before, application.after)
    return meta


class Verify:
    """Checks each changed graph: structure always, and with `execute` also what it computes.

    Executing runs the graph before and after on the same seeded inputs, made from
    `meta["val"]` of the placeholders. A graph that cannot run on such inputs (out-of-range indices)
    is recorded as `verify-skipped`, never taken for a failure. When a pass changes how random
    numbers are drawn, only shapes and dtypes are compared. A pass whose graphs are to be compared
    in another way has a method `check`; see `Pass`.
    """

    def __init__(
        self, *, execute: bool = True, sink: EventSink | None = None, seed: int = 0
    ) -> None:
        self._execute = execute
        self._sink = sink
        self._seed = seed

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """Nothing to do: the first pass's `before` is this graph."""

    def after_pass(self, application: Application) -> None:
        """Raise `VerificationError` when the changed graph is malformed or computes otherwise."""
        if application.status != "changed":
            return
        name = application.pass_.name
        try:
            application.after.graph.lint()
        except Exception as error:
            raise VerificationError(name, f"the graph is malformed: {error}") from error
        if not self._execute:
            return
        from deepcompile.pipeline.execute import Mismatch, NotRunnable, compare_graphs

        check = getattr(application.pass_, "check", compare_graphs)
        try:
            found = check(application.before, application.after, self._seed)
        except NotRunnable as error:
            self._note("verify-skipped", application, reason=str(error))
            return
        if isinstance(found, Mismatch):
            raise VerificationError(name, found.detail, node=found.node, max_error=found.max_error)
        self._note("verified", application, **asdict(found))

    def _note(self, event: str, application: Application, **fields: Any) -> None:
        if self._sink is not None:
            where = {"pass": application.pass_.name, "graph": application.graph_name}
            self._sink(event, **where, **fields)


def standard_instruments(
    verify: bool,
    run_dir: RunDir | None,
    print_graph: PrintGraph,
    sink: EventSink | None = None,
    selection: Selection | None = None,
) -> tuple[Any, ...]:
    """What a compile with these options looks on with: `Verify` first, then `Dumper`."""
    found: list[Any] = []
    if verify:
        found.append(Verify(sink=sink))
    if run_dir is not None:
        found.append(Dumper(run_dir, print_graph, selection))
    return tuple(found)
