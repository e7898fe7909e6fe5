"""What a compile tells torch's structured trace (TORCH_TRACE), which `tlparse` shows as a page.

    deepep_<NNN>_<pass>_<graph>   the graph as text, before the first pass and after each change
    deepep_kernels_<graph>        the source of its kernels
    deepep_<event>_<graph>        JSON: what runs in eager and why, a failed pass, what was compiled
    deepep_<graph>                a graph dump: what goes into the passes, as torch writes code

Nothing is printed or counted unless a trace is written. Graph dumps and artifacts are kinds that
tlparse knows; it files them under the compile that Dynamo was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch._logging._internal import trace_log, trace_structured
from torch.fx import GraphModule

from deepcompile.pipeline.manager import Application
from deepcompile.pipeline.protocol import GraphKind

EVENTS = ("fallback", "pass-failed", "compiled")
"""Events that have an artifact of their own."""


def is_on() -> bool:
    """Whether somebody reads: TORCH_TRACE is set, or a handler was added."""
    return bool(trace_log.handlers)


def artifact(name: str, make: Callable[[], Any], encoding: str = "string") -> None:
    """A named text, or JSON where `encoding` is "json"; `make` is called only if it is kept."""
    trace_structured(
        "artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=make
    )


def trace_event(kind: str, fields: Mapping[str, Any]) -> None:
    """An event of the compile, if it is one of `EVENTS`."""
    if kind in EVENTS and is_on():
        parts = ("deepep", kind, fields.get("graph"))
        payload = {"kind": kind} | {key: _plain(value) for key, value in fields.items()}
        artifact("_".join(str(part) for part in parts if part), lambda: payload, "json")


def trace_kernels(graph: str, sources: Iterable[tuple[str, Iterable[str], str]]) -> None:
    """The kernels of a graph: name, the user's lines it came from, source."""
    if is_on():
        artifact(f"deepep_kernels_{graph}", lambda: "\n\n".join(_kernel(*s) for s in sources))


def _kernel(name: str, lines: Iterable[str], source: str) -> str:
    return f"==== kernel {name} from {', '.join(lines) or '?'}\n{source}"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


class PassTrace:
    """Instrument: the state before the first pass, and each state that a pass changed."""

    def __init__(self, print_graph: Callable[[GraphModule, GraphKind], str]) -> None:
        self._print_graph = print_graph

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """State 000, and the graph as code."""
        artifact(f"deepep_000_input_{graph_name}", lambda: self._print_graph(graph, kind))
        trace_structured(
            "graph_dump",
            metadata_fn=lambda: {"name": f"deepep_{graph_name}"},
            payload_fn=lambda: graph.print_readable(print_output=False, expanded_def=True),
        )

    def after_pass(self, application: Application) -> None:
        """The state after a pass that changed the graph."""
        if application.status == "changed":
            name = f"deepep_{application.index:03d}_{application.pass_.name}"
            artifact(
                f"{name}_{application.graph_name}",
                lambda: self._print_graph(application.after, application.kind),
            )
