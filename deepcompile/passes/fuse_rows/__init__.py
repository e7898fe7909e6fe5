"""The pass `fuse-rows`; the work is in sibling modules, so that this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deepcompile.pipeline.protocol import PassContext, PassResult

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class FuseRows:
    """Fuse pointwise chains, row reductions and column sums into kernels, one a row program.

    Before:
        %m = aten.amax(%x, [-1], True)
        %s = aten.sub(%x, %m)
        %e = aten.exp(%s)
        %t = aten.sum(%e, [-1], True)
        %y = aten.div(%e, %t)
    After:
        %y = kernel @k0(%x)

    A kernel is a set of nodes with one domain of rows: a node may read a value of the same row, at
    the same place of the row. Column reductions (gradients of weights and biases) and totals become
    accumulators over the rows. Cheap pointwise nodes that are read at other positions (halves that
    are concatenated, masks, constants) are computed again where they are read.

    With the option `deterministic`, sums of everything (in Triton: all sums of floats) have kernels
    of their own, sums that walk memory in different orders do not meet, and every op rounds.

    Does not apply to matrix products, convolutions, attention, scatter and whatever has no rule in
    the lowering; two groups stay apart when a path between them leaves both, when their loops do
    not match, or when one needs a total that is complete only after all rows. Each such edge is
    noted with its reason as `fusion-rejected`.
    """

    max_nodes: int = 96
    max_buffers: int = 40

    name: ClassVar[str] = "fuse-rows"
    phase: ClassVar[Literal["joint", "graph"]] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset({"fused"})
    skippable: ClassVar[bool] = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Replace groups of nodes by kernel nodes."""
        from deepcompile.passes.fuse_rows.rewrite import fuse

        return fuse(graph, ctx, max_nodes=self.max_nodes, max_buffers=self.max_buffers)
