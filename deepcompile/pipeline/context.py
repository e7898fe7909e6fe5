"""What a running pass may ask for, and the counters behind the bisection limits."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deepcompile.options import Options
from deepcompile.pipeline.protocol import GraphKind

if TYPE_CHECKING:
    from torch.fx import Node

EventSink = Callable[..., None]
"""Called as `sink(kind, **fields)`; `RunDir.event` is one."""
ReportSink = Callable[[str, Mapping[str, Any]], None]
"""Called as `reports(subject, document)` with what a pass says of the graph that it decided on."""


class Counters:
    """How many passes, rewrites and kernels there were so far; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._applications = 0
        self._kernels = 0
        self._rewrites: dict[str, int] = {}

    def next_application(self, limit: int | None) -> int | None:
        """The number of this application of a skippable pass, from 1; None when past `limit`."""
        with self._lock:
            if limit is not None and self._applications >= limit:
                return None
            self._applications += 1
            return self._applications

    def next_kernel(self, limit: int | None) -> int | None:
        """The number of this call of a kernel in a program, from 1; None when past `limit`."""
        with self._lock:
            if limit is not None and self._kernels >= limit:
                return None
            self._kernels += 1
            return self._kernels

    def next_rewrite(self, pass_name: str, limit: int | None) -> int | None:
        """The number of this rewrite of one pass, from 1; None when past `limit`."""
        with self._lock:
            done = self._rewrites.get(pass_name, 0)
            if limit is not None and done >= limit:
                return None
            self._rewrites[pass_name] = done + 1
            return done + 1


@functools.cache
def process_counters() -> Counters:
    """The counters of this process: the limits hold over all its compiles, in order."""
    return Counters()


class Context:
    """The `PassContext` of one application of one pass to one graph."""

    def __init__(
        self,
        pass_name: str,
        kind: GraphKind,
        options: Options,
        counters: Counters,
        sink: EventSink | None = None,
        graph_name: str = "",
        reports: ReportSink | None = None,
    ) -> None:
        self._pass_name = pass_name
        self._kind = kind
        self._options = options
        self._counters = counters
        self._sink = sink
        self._graph_name = graph_name
        self._reports = reports
        self.rewrites: dict[str, int] = {}

    @property
    def kind(self) -> GraphKind:
        """Which graph of the training step this is."""
        return self._kind

    @property
    def options(self) -> Options:
        """The options of this compile."""
        return self._options

    def allow(self, rewrite: str, node: Node | None = None) -> bool:
        """Leave to apply one rewrite; each True counts towards `rewrite_limit` of this pass."""
        disabled = self._options.disable
        if disabled and (f"{self._pass_name}/{rewrite}" in disabled or self._pass_name in disabled):
            return False
        limit = self._options.rewrite_limit
        bound = limit[1] if limit is not None and limit[0] == self._pass_name else None
        number = self._counters.next_rewrite(self._pass_name, bound)
        if number is None:
            return False
        self.rewrites[rewrite] = self.rewrites.get(rewrite, 0) + 1
        if limit is not None and limit[0] == self._pass_name:
            # Only while bisecting: one event a rewrite is too much for every compile.
            self.note("rewrite", rewrite=rewrite, number=number, node=node.name if node else None)
        return True

    def note(self, event: str, **fields: Any) -> None:
        """Record a fact in the run's events, with the pass and the graph it belongs to."""
        if self._sink is not None:
            self._sink(event, **{"pass": self._pass_name, "graph": self._graph_name} | fields)

    def report(self, subject: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Give a document on what was decided to who keeps it; one that fails is an event."""
        if self._reports is None:
            return
        try:
            document = {"graph": self._graph_name, "kind": self._kind, **make()}
        except Exception as error:  # the graph is right, only what is told of it is not
            self.note("report-failed", subject=subject, error=f"{type(error).__name__}: {error}")
            return
        self._reports(subject, document)
