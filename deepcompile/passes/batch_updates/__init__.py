"""The pass `batch-updates`; the work is in sibling modules, so that this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deepcompile.pipeline.protocol import PassContext, PassResult

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class BatchUpdates:
    """Gather equal pointwise updates of many tensors into one call over a table of rows.

    Before:
        %a = aten.mul(%g0, 0.1)
        %b = aten.sub(%p0, %a)
        %c = aten.copy_(%p0, %b)
        %d = aten.mul(%g1, 0.1)
        %e = aten.sub(%p1, %d)
        %f = aten.copy_(%p1, %e)
    After:
        %u = batch @b0([], [[%p0, %p1], [%g0, %g1]])

    The step of an optimizer: however many parameters there are, whatever their shapes, the rest of
    the compile sees one of them. The tensors of an update must have one shape and one dense layout,
    or be single values (a step counter); numbers in it must be equal, and values that all updates
    read (a learning rate) are single values that nothing writes.

    Does not apply to updates that reduce, broadcast, index or reach anything that does; to tensors
    of symbolic sizes; and to joint graphs, which are still to be split.
    """

    name: ClassVar[str] = "batch-updates"
    phase: ClassVar[Literal["joint", "graph"]] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Replace the nodes of equal updates by one batch node."""
        from deepcompile.passes.batch_updates.rewrite import batch

        return batch(graph, ctx)
