"""What Dynamo says of graphs that end early, made short."""

from __future__ import annotations

import itertools
from typing import Any

from torch.fx import GraphModule


def in_short(graph_break: str) -> str:
    """Dynamo's text about a graph break in one line: its title and what it explains."""
    title, *rest = graph_break.splitlines()
    explained = (
        line.strip().removeprefix("Explanation: ") for line in rest if "Explanation" in line
    )
    return ": ".join([title, *itertools.islice(explained, 1)])


def with_hint(graph_break: str) -> str:
    """As `in_short`, with the first thing that Dynamo says one can do."""
    hints = (
        line.strip().removeprefix("Hint: ")
        for line in graph_break.splitlines()
        if line.strip().startswith("Hint: ")
    )
    return " ".join([in_short(graph_break), *itertools.islice(hints, 1)])


def end_of(gm: GraphModule) -> dict[str, Any] | None:
    """Why Dynamo's graph ends before the user's function does, as fields of an event, or None."""
    why = getattr(gm, "compile_subgraph_reason", None)
    if why is None or not why.graph_break:
        return None
    frame = why.user_stack[-1] if why.user_stack else None
    return {
        "reason": in_short(why.reason),
        "origin": f"{frame.filename}:{frame.lineno}" if frame else None,
        "detail": why.reason,
    }
