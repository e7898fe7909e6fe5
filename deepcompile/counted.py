"""Decisions outside passes that are counted, so that `bisect` can leave the later ones out.

Recomputation counts among the passes of a process (option `opt_limit`), as one named `recompute`;
kernels have a count of their own (option `kernel_limit`). Each is an event, with its number, or
None where it was left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from .capture import torch_private
from .capture.aot import SplitJoint
from .options import Options
from .pipeline.context import process_counters

Note = Callable[..., None]


def counted_split(
    split: SplitJoint | None, options: Options, graph: str, note: Note
) -> SplitJoint | None:
    """What splits joint graphs, without recomputation where that is past the limit.

    Args:
        split: what would do it; None for torch's partitioner.
        options: `opt_limit` is read.
        graph: for the event.
        note: is told the event.
    """
    limit = options.opt_limit
    if limit is None:
        return split

    def counted(*args: Any, **kwargs: Any) -> tuple[GraphModule, GraphModule]:
        number = process_counters().next_application(limit)
        note("recompute", number=number, graph=graph)
        chosen = split or torch_private.split_joint_graph
        if number is None:
            chosen = torch_private.split_without_recomputing
        return chosen(*args, **kwargs)

    return counted


def counted_kernels(options: Options, graph: str, note: Note) -> Callable[[Node], bool] | None:
    """Whether a kernel runs as generated code, or as its ATen ops; None where all do.

    Args:
        options: `kernel_limit` is read.
        graph: for the event.
        note: is told the event.
    """
    limit = options.kernel_limit
    if limit is None:
        return None

    def is_generated(node: Node) -> bool:
        number = process_counters().next_kernel(limit)
        note("kernel", graph=graph, kernel=getattr(node.target, "__name__", ""), number=number)
        return number is not None

    return is_generated
