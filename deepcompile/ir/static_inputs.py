"""Which inputs of a graph lie at the same address on every call: parameters and buffers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch.fx import Graph, Node

STATIC_KEY = "deepcompile_static_input"
_ODD = re.compile(r"[^\w.]+")


def mark_static_inputs(graph: Graph, positions: Iterable[int], names: Sequence[str] = ()) -> None:
    """Mark the placeholders at these positions; passes keep the mark.

    Args:
        graph: of AOTAutograd.
        positions: among its placeholders.
        names: what the user calls the inputs, in this order; not used where they are not as many.
    """
    placeholders = list(graph.find_nodes(op="placeholder"))
    given = [node for node in placeholders if not str(node.target).startswith("tangents")]
    for number, position in enumerate(sorted(positions)):
        if position < len(given):
            name = names[position] if len(names) == len(given) else ""
            given[position].meta[STATIC_KEY] = _ODD.sub("_", name) or f"input_{number}"


def static_name(node: Node) -> str | None:
    """What the user calls a placeholder that is a parameter or a buffer; None for others."""
    return node.meta.get(STATIC_KEY)
