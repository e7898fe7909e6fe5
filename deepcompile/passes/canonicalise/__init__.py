"""The pass `canonicalise`; the rewriting is in sibling modules, so that this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deepcompile.pipeline.protocol import PassContext, PassResult

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class Canonicalise:
    """Drop no-ops and dead code, fold chains of views and casts, share common subexpressions.

    Before:
        %d = aten.detach(%x)
        %t = aten.permute(%d, [1, 0])
        %u = aten.t(%t)
        %a = aten.exp(%u)
        %b = aten.exp(%x)
        %y = aten.mul(%a, %b)
    After:
        %a = aten.exp(%x)
        %y = aten.mul(%a, %a)

    The rewrites are `no-op`, `fold-views`, `merge-casts`, `common-subexpression` and `dead-code`.
    All of them keep every bit of the result, strides and aliasing of outputs included.

    Does not apply to random ops, to ops that write and to memory that is written, to copies that
    keep two outputs (or an output and an input) apart, to casts that round on their way, to
    `x + 0.0` (which turns -0.0 into 0.0), to views of tensors that are not contiguous, and, in a
    joint graph, to equal nodes of forward and backward that are costly to compute again.
    """

    name: ClassVar[str] = "canonicalise"
    phase: ClassVar[Literal["joint", "graph"]] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset({"canonical"})
    skippable: ClassVar[bool] = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite a copy of `graph`, or return it when it is canonical already."""
        from deepcompile.passes.canonicalise.rewrite import rewrite

        return rewrite(graph, ctx)
