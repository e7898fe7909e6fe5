"""Which inputs of a graph lie at the same address on every call: parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Graph, Node

STATIC_KEY = "deepcompile_static_input"


def mark_static_inputs(graph: Graph, positions: Iterable[int]) -> None:
    """Mark the placeholders at these positions; passes keep the mark."""
    placeholders = list(graph.find_nodes(op="placeholder"))
    for position in positions:
        if position < len(placeholders):
            placeholders[position].meta[STATIC_KEY] = True


def is_static_input(node: Node) -> bool:
    """Whether a placeholder was marked as a parameter or a buffer."""
    return bool(node.meta.get(STATIC_KEY))
