"""The pass `partition`; the rewriting is in `rewrite`, so that this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deepcompile.pipeline.protocol import PassContext, PassResult

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from deepcompile.pipeline.execute import Agreement, Mismatch


@dataclass(frozen=True)
class Partition:
    """Share the work of a model on a mesh among its ranks: every tensor gets its placement.

    Before (tp=2):
        %w = deepcompile.unshard(%p, "128,64 | S(0) | tp=2@1 | up.weight")   f32[128, 64]
        %t = aten.permute(%w, [1, 0])
        %y = aten.mm(%x, %t)                                                  f32[32, 128]
    After:
        %t = aten.permute(%p, [1, 0])                                         f32[64, 64]
        %y = aten.mm(%x, %t)                                                  f32[32, 64]

    Markers say where parameters are on the mesh. The placements of all other tensors, forward and
    backward together, are those of least modelled time; where a tensor is needed in another
    placement than it has, a collective moves it, once for all who need it so. Random numbers are
    those of one device. A collective starts where its tensor is made and is waited for at its
    first use.

    Does not apply to graphs without parameters of a mesh; see `deepcompile.parallelize`.
    """

    name: ClassVar[str] = "partition"
    phase: ClassVar[Literal["joint", "graph"]] = "joint"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Plan and lower a graph that has markers."""
        from deepcompile.passes.partition.rewrite import rewrite

        return rewrite(graph, ctx)

    def check(self, before: GraphModule, after: GraphModule, seed: int = 0) -> Agreement | Mismatch:
        """Both graphs on all ranks of the mesh, simulated in this process."""
        from deepcompile.passes.partition.check import compare_on_all_ranks

        return compare_on_all_ranks(before, after, seed)
