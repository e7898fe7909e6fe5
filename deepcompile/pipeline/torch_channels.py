"""Where torch's users already look: its logging and its structured trace, told in one place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from deepcompile.pipeline import torch_logs, torch_trace
from deepcompile.pipeline.instruments import PrintGraph
from deepcompile.pipeline.manager import Instrument
from deepcompile.pipeline.protocol import GraphKind

if TYPE_CHECKING:
    from torch.fx import GraphModule


def torch_instruments(print_graph: PrintGraph) -> tuple[Instrument, ...]:
    """What looks on for torch's channels; nothing where nobody listens."""
    found: list[Instrument] = []
    printed = partial(_printed, print_graph)
    if torch_logs.PASSES.isEnabledFor(logging.INFO):
        found.append(torch_logs.PassLog(printed))
    if torch_trace.is_on():
        found.append(torch_trace.PassTrace(printed))
    return tuple(found)


def _printed(print_graph: PrintGraph, graph: GraphModule, kind: GraphKind) -> str:
    try:
        return print_graph(graph, kind=kind)
    except Exception as error:  # a graph we cannot print must not stop the compile
        reason = f"{type(error).__name__}: {error}"
        return f"# cannot be printed: {reason}\n# torch's own text:\n{graph.graph}\n"


def tell_event(kind: str, fields: Mapping[str, Any]) -> None:
    """An event of a compile, to the loggers and the trace."""
    torch_logs.log_event(kind, fields)
    torch_trace.trace_event(kind, fields)


def tell_kernels(graph: str, sources: Iterable[tuple[str, Iterable[str], str]]) -> None:
    """The kernels of a graph: name, the user's lines it came from, source."""
    torch_logs.log_kernels(graph, sources)
    torch_trace.trace_kernels(graph, sources)
