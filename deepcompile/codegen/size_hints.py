"""Sizes by example: what those of a graph were when it was traced."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from ..ir.index import Index
from ..passes.lowering.refusals import CannotLower
from ..passes.lowering.shapes import size_index


def size_hints(graph: GraphModule) -> dict[str, int]:
    """What the sizes of a graph were when it was traced."""
    found: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        numbers = [*value.shape, *value.stride()] if isinstance(value, torch.Tensor) else [value]
        for number in numbers:
            if not isinstance(number, torch.SymInt) or number.node.hint is None:
                continue
            try:
                names = size_index(number).names()
            except CannotLower:
                continue
            if len(names) == 1 and size_index(number) == Index.of(name := next(iter(names))):
                found[name] = int(number.node.hint)
    return found
