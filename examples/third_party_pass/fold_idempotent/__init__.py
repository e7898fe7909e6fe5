"""The pass `fold-idempotent`; the rewriting is in `rewrite`, so that listing it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deepcompile.pipeline.protocol import PassContext, PassResult

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class FoldIdempotent:
    """Apply ops like relu once where they are applied twice in a row.

    Before:
        %a = aten.relu(%x)
        %b = aten.relu(%a)
        %y = aten.mul(%b, 2)
    After:
        %a = aten.relu(%x)
        %y = aten.mul(%a, 2)

    The rewrite is `apply-once`. With `rounding=false` floor, ceil, trunc and round are left alone.

    Does not apply to the last of a chain where that is an output of the graph: whoever called may
    hold both results, and they would become one tensor.
    """

    name: ClassVar[str] = "fold-idempotent"
    phase: ClassVar[Literal["joint", "graph"]] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    rounding: bool = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite a copy of `graph`, or return it when nothing is applied twice."""
        from fold_idempotent.rewrite import rewrite

        return rewrite(graph, ctx, rounding=self.rounding)
