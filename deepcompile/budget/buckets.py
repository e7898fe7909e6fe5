"""Sizes that a plan is for: with symbolic sizes, all calls up to a power of two.

A graph with symbolic sizes runs with any, and what it holds grows with them. A plan is made for the
largest sizes of a bucket: of each symbol the next power of two, or the largest that the user has
declared. The bucket becomes a guard of the graph, so for sizes beyond it Dynamo compiles the graph
once more, and there is a plan for each bucket that a run meets. A plan that computes something
again also has a lower end: smaller sizes are better off with a plan of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph

from ..cost.flops import extent_of

_DECLARED = 64
"""A bound of a size counts as declared up to so many times the size that was seen."""


@dataclass(frozen=True)
class Bucket:
    """The largest sizes of a plan.

    Attributes:
        sizes: by name of the symbol; none where all sizes are numbers.
        symbols: as they occur in the graph.
        floor: the product of all that are bounded by a power of two is above this.
        stepped: names of those.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    symbols: Mapping[str, torch.SymInt] = field(default_factory=dict)
    floor: int = 0
    stepped: tuple[str, ...] = ()

    def exact(self) -> Bucket:
        """With no room above the sizes that were seen."""
        seen = {name: extent_of(self.symbols[name]) for name in self.stepped}
        return replace(self, sizes={**self.sizes, **seen})

    @property
    def is_exact(self) -> bool:
        """Whether there is no room above the sizes that were seen."""
        return all(self.sizes[name] == extent_of(self.symbols[name]) for name in self.stepped)

    def guard(self, *, from_below: bool) -> None:
        """Have Dynamo compile anew for sizes above these, and for such as a smaller bucket has.

        It has to be called while the graph compiles.
        """
        for name in self.stepped:
            assert self.symbols[name] <= self.sizes[name]
        if from_below and self.stepped:
            assert math.prod(self.symbols[name] for name in self.stepped) > self.floor


def bucket_of(graph: Graph) -> Bucket:
    """The bucket of the sizes that a graph was traced with."""
    symbols: dict[str, torch.SymInt] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else [value]:
            if isinstance(size, torch.SymInt) and _is_bare(size):
                symbols.setdefault(str(size.node.expr), size)
    sizes, stepped, floor = {}, [], 1
    for name, size in symbols.items():
        seen = extent_of(size)
        declared = _declared(size)
        if declared is not None and declared <= _DECLARED * seen:
            sizes[name] = declared
            continue
        sizes[name] = 1 << max(seen - 1, 0).bit_length()
        stepped.append(name)
        floor *= sizes[name] // 2
    return Bucket(sizes, symbols, floor if stepped else 0, tuple(stepped))


def _is_bare(size: torch.SymInt) -> bool:
    expr: Any = size.node.expr
    return bool(expr.is_Symbol) and size.node.hint is not None


def _declared(size: torch.SymInt) -> int | None:
    """The largest that a size can be for all that Dynamo knows; None without a limit."""
    known = size.node.shape_env.var_to_range.get(size.node.expr)
    upper = None if known is None else known.upper
    return int(upper) if upper is not None and upper.is_Integer else None
