"""Loggers of a compile, and their levels: TORCH_LOGS, `torch._logging.set_logs` or an option.

    deepcompile           events: what runs in eager at INFO, all others at DEBUG
    deepcompile.passes    each pass that changed a graph at INFO, the graph as text at DEBUG
    deepcompile.codegen   each compiled graph at INFO, the source of its kernels at DEBUG

Their names are those of packages, because torch reads TORCH_LOGS when it is imported, before any
backend, and then takes only its own names and modules that can be imported.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch._logging import _internal as torch_logging

from deepcompile.options import Options
from deepcompile.pipeline.instruments import op_delta
from deepcompile.pipeline.manager import Application
from deepcompile.pipeline.protocol import GraphKind

if TYPE_CHECKING:
    from torch.fx import GraphModule

EVENTS = logging.getLogger("deepcompile")
PASSES = logging.getLogger("deepcompile.passes")
CODEGEN = logging.getLogger("deepcompile.codegen")


def set_levels(options: Options) -> None:
    """The level of a compile: of `log_level` if the user set it, else what torch was told.

    With neither it is that option's default. Where the level lets through more than warnings and
    nobody listens, a handler of torch's kind writes to stderr.
    """
    given = "log_level" in options.provided
    if given or not _named_in_torch_logs(EVENTS.name):
        EVENTS.setLevel(options.log_level.upper())
    if given and EVENTS.level < logging.WARNING and not EVENTS.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(torch_logging.TorchLogsFormatter())
        EVENTS.addHandler(handler)


def _named_in_torch_logs(name: str) -> bool:
    return any(known == name for known, _ in torch_logging.log_state.get_log_level_pairs())


def log_event(kind: str, fields: Mapping[str, Any]) -> None:
    """An event, at the level of its kind."""
    EVENTS.log(logging.INFO if kind == "fallback" else logging.DEBUG, "%s %s", kind, fields)
    if kind == "compiled" and CODEGEN.isEnabledFor(logging.INFO):
        stages = ", ".join(f"{stage} {s:.3f} s" for stage, s in fields["seconds"].items())
        counts = fields["graph"], fields["kernels"], fields["externs"]
        CODEGEN.info("%s: kernels %d, calls of ATen %d; %s", *counts, stages)


def log_kernels(graph: str, sources: Iterable[tuple[str, Iterable[str], str]]) -> None:
    """The kernels of a graph: name, the user's lines it came from, source."""
    if CODEGEN.isEnabledFor(logging.DEBUG):
        for name, lines, source in sources:
            CODEGEN.debug("%s kernel %s from %s\n%s", graph, name, ", ".join(lines) or "?", source)


class PassLog:
    """Instrument: a line for each pass that changed a graph, and its text where that is wanted."""

    def __init__(self, print_graph: Callable[[GraphModule, GraphKind], str]) -> None:
        self._print_graph = print_graph

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """How large the graph is that passes get."""
        PASSES.info("%s: %d nodes (%s)", graph_name, len(graph.graph.nodes), kind)

    def after_pass(self, application: Application) -> None:
        """What the pass did; one that changed nothing is worth a line at DEBUG only."""
        where = f"{application.graph_name} {application.index:03d} {application.pass_.name}"
        if application.status != "changed":
            why = f": {application.reason}" if application.reason else ""
            level = logging.DEBUG if application.status == "unchanged" else logging.INFO
            PASSES.log(level, "%s %s%s", where, application.status, why)
            return
        delta = op_delta(application.before, application.after)
        more = sum(count for count in delta.values() if count > 0)
        fewer = -sum(count for count in delta.values() if count < 0)
        ms = application.seconds * 1e3
        PASSES.info("%s changed in %.1f ms, ops +%d -%d", where, ms, more, fewer)
        if PASSES.isEnabledFor(logging.DEBUG):
            text = self._print_graph(application.after, application.kind)
            PASSES.debug("%s\n%s", where, text)
