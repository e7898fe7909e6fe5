"""What the compiler does beside passes where a graph runs on a mesh of ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.fx import GraphModule

from .capture.torch_private import modules_in_reach
from .ir.collectives import communicates
from .options import Options
from .passes.partition.marked import CommonInput, common_inputs, has_markers, plan_of
from .passes.partition.plain import axes_of, given_inputs, mark_whole
from .runtime.collectives.agreement import agreed_in_world
from .runtime.collectives.eager_gradients import GraphParameters
from .runtime.collectives.graph_collectives import fingerprint_of
from .runtime.collectives.start import members_of

_LOCAL = re.compile(r"^L\['(\w+)'\]")
"""What Dynamo calls an argument."""


class OnMesh:
    """One captured graph and its halves.

    Args:
        options: of the compile; `mesh` puts whole parameters on a mesh.
        example_inputs: of Dynamo's graph.
        names: what the user calls them.
    """

    def __init__(
        self, options: Options, example_inputs: Sequence[Any], names: Sequence[str] = ()
    ) -> None:
        self._options = options
        self._names = [
            _LOCAL.sub(r"\1", name)
            for name, value in zip(names, example_inputs, strict=False)
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
        ]
        self._parameters = GraphParameters(example_inputs)
        self._plan = ""
        self._common: tuple[CommonInput, ...] = ()

    def enter(self, gm: GraphModule) -> bool:
        """Mark whole parameters where the option says so; whether the graph is on a mesh.

        Remembers what ranks compare: the placements of parameters, and inputs that are alike.
        """
        if self._options.mesh is not None and not has_markers(gm.graph):
            axes = axes_of(self._options.mesh)
            averaged = mark_whole(gm.graph, axes)
            count = len(given_inputs(gm.graph))
            of_data = tuple((a.group, a.size) for a in axes if a.is_data and a.size > 1)
            self._parameters.watch(modules_in_reach(), of_data, averaged, count)
        self._plan, self._common = plan_of(gm.graph), common_inputs(gm.graph, self._names)
        return has_markers(gm.graph)

    def run(
        self, run: Callable[..., Any], gm: GraphModule, name: str, kind: str
    ) -> Callable[..., Any]:
        """A compiled graph as ranks of a mesh call it.

        Ranks compare the collectives that they have in common when it is first run. Gradients of
        code that stays in eager are averaged behind a backward graph.

        Args:
            run: what was compiled.
            gm: the graph after partitioning.
            name: of the graph.
            kind: "forward", "backward" or "inference".
        """
        has_ranks = dist.is_available() and dist.is_initialized()
        if has_ranks and any(communicates(node.target) for node in gm.graph.nodes):
            fingerprint = fingerprint_of(gm, name, self._plan, members_of, common=self._common)
            run = agreed_in_world(run, fingerprint)
        return self._parameters.averaging(run) if kind == "backward" else run
