"""What Dynamo says of graphs that end early, made short."""

from __future__ import annotations

import itertools


def in_short(graph_break: str) -> str:
    """Dynamo's text about a graph break in one line: its title and what it explains."""
    title, *rest = graph_break.splitlines()
    explained = (
        line.strip().removeprefix("Explanation: ") for line in rest if "Explanation" in line
    )
    return ": ".join([title, *itertools.islice(explained, 1)])
