"""The pass `functionalise-random`; the rewriting is in `rewrite`, so that this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deepcompile.pipeline.protocol import PassContext, PassResult

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class FunctionaliseRandom:
    """Make random numbers pure functions of one seed per graph, so that masks are not stored.

    Before:
        %dropout = aten.native_dropout(%x, 0.1, True)
        %y = getitem(%dropout, 0)
    After:
        %seed = deepcompile.philox_seed(device=cpu)
        %u = deepcompile.philox_uniform(%seed, 0, [8, 16], dtype=f32, device=cpu)
        %mask = aten.lt(%u, 0.9)
        %y = aten.mul(aten.mul(%x, aten._to_copy(%mask, dtype=f32)), 1.1111111)

    Uniform numbers, normal numbers, Bernoulli masks and exponentials are rewritten. The seed is
    drawn from torch's default generator, so `torch.manual_seed` makes runs repeat; the numbers
    are not those that eager would draw. In a joint graph the numbers are marked for recomputation
    and only the 8 bytes of the seed are saved for backward.

    Does not apply with `options.rng == "eager"`, to ops with an explicit generator, to float64
    uniforms and normals (whose resolution would drop), to integers and permutations.
    """

    name: ClassVar[str] = "functionalise-random"
    phase: ClassVar[Literal["joint", "graph"]] = "joint"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite every random op that has a counter-based form."""
        from deepcompile.passes.functionalise_random.rewrite import rewrite

        return rewrite(graph, ctx)
