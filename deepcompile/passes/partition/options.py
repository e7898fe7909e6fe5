"""The options of each node on a mesh: one strategy for each of its tensor axes, and its seconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from deepcompile.cost.flops import flops_of
from deepcompile.cost.rates import Rates
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE, Placement, Placements, Shard, local_numel
from deepcompile.passes.partition.candidates import Candidates
from deepcompile.passes.partition.sites import Sites
from deepcompile.passes.partition.strategy import (
    Rule,
    Strategy,
    divisible,
    outputs_of,
    tensor_inputs,
)

aten = torch.ops.aten

#: Operations that move nothing.
FREE = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.alias.default,
        aten.detach.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.squeeze.dims,
        aten.squeeze.dim,
        aten.squeeze.default,
        aten.unsqueeze.default,
        aten.split_with_sizes.default,
        aten.split.Tensor,
        aten.unbind.int,
    }
)

FUSED = 0.4
"""The part of its bytes that a pointwise operation moves, fused with those around it."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to compute a node on a mesh; a placement for every axis of it.

    Attributes:
        outputs: of each tensor that it makes.
        inputs: of each tensor that it takes.
        seconds: of the computation, on one rank.
    """

    outputs: tuple[Placements, ...]
    inputs: tuple[Placements, ...]
    seconds: float


@dataclass
class Options:
    """What nodes can choose from on a mesh.

    Args:
        sites: the graph.
        mesh: tensors are shared on its tensor axes only; those of data count as `R`.
        rates: of the device.
    """

    sites: Sites
    mesh: Mesh
    rates: Rates
    candidates: Candidates = field(init=False)
    dropped: dict[Node, tuple[tuple[str, str], ...]] = field(init=False, default_factory=dict)
    """By node: strategies that were dropped, and why."""

    def __post_init__(self) -> None:
        self.axes = self.mesh.tensor_axes
        self.candidates = Candidates(self.sites, [self.mesh.sizes[axis] for axis in self.axes])
        self._known: dict[object, tuple[tuple[Option, ...], tuple[tuple[str, str], ...]]] = {}

    def of(self, node: Node) -> tuple[Option, ...]:
        """All of a node, the one that replicates first. Equal nodes share them."""
        strategies = self.candidates.strategies(node)
        key = self.candidates.kinds[node], strategies
        if key not in self._known:
            self._known[key] = self._options(node, strategies)
        options, dropped = self._known[key]
        if dropped:
            self.dropped[node] = dropped
        return options

    def replicated(self, count: int) -> tuple[Placements, ...]:
        return ((REPLICATE,) * len(self.mesh.sizes),) * count

    def _options(
        self, node: Node, strategies: Sequence[Strategy]
    ) -> tuple[tuple[Option, ...], tuple[tuple[str, str], ...]]:
        rule = self.candidates.rules.get(node)
        inputs = [tuple(source.meta["val"].shape) for source in tensor_inputs(node)]
        outputs = [None if v is None else tuple(v.shape) for v in outputs_of(node)]
        dropped: dict[str, str] = {}
        by_axis = [
            self._possible(node, rule, axis, strategies, inputs, outputs, dropped)
            for axis in self.axes
        ]
        options = []
        for chosen in itertools.product(*by_axis):
            option = self._option(node, chosen, inputs, outputs)
            if option is not None:
                options.append(option)
        return tuple(options), tuple(dropped.items())

    def _possible(
        self,
        node: Node,
        rule: Rule | None,
        axis: int,
        strategies: Sequence[Strategy],
        inputs: Sequence[Sequence[int]],
        outputs: Sequence[Sequence[int] | None],
        dropped: dict[str, str],
    ) -> list[Strategy]:
        ranks = self.mesh.sizes[axis]
        kept = []
        for strategy in strategies:
            reason = divisible(strategy, inputs, outputs, ranks)
            if reason is None:
                kept.append(strategy)
            elif not any(getattr(place, "pieces", ()) for place in strategy.inputs):
                text = f"{self.mesh.axes[axis][0]}: {_text(strategy)}"
                dropped.setdefault(text, reason)
        if rule is None:
            dropped.setdefault(self.mesh.axes[axis][0], f"no rule for {node.target}")
        return kept

    def _option(
        self,
        node: Node,
        chosen: Sequence[Strategy],
        inputs: Sequence[Sequence[int]],
        outputs: Sequence[Sequence[int] | None],
    ) -> Option | None:
        made = tuple(self._over_axes([s.outputs[i] for s in chosen]) for i in range(len(outputs)))
        taken = tuple(self._over_axes([s.inputs[i] for s in chosen]) for i in range(len(inputs)))
        for units in {strategy.units for strategy in chosen if strategy.units}:
            pairs = zip(self.axes, chosen, strict=True)
            if units % math.prod(self.mesh.sizes[a] for a, s in pairs if s.units == units):
                return None
        rule = self.candidates.rules.get(node)
        if rule is not None and rule.together is not None and not rule.together(chosen):
            return None
        for shapes, placed in ((inputs, taken), (outputs, made)):
            for shape, placements in zip(shapes, placed, strict=True):
                if shape is not None and not fits(shape, placements, self.mesh.sizes):
                    return None
        return Option(made, taken, self._seconds(node, chosen, taken, made))

    def _over_axes(self, placements: Sequence[Placement]) -> Placements:
        found: list[Placement] = [REPLICATE] * len(self.mesh.sizes)
        for axis, placement in zip(self.axes, placements, strict=True):
            found[axis] = placement
        return tuple(found)

    def _seconds(
        self,
        node: Node,
        chosen: Sequence[Strategy],
        taken: Sequence[Placements],
        made: Sequence[Placements],
    ) -> float:
        if node.target in FREE:
            return 0.0
        sizes = self.mesh.sizes
        moved = 0.0
        for source, placements in dict(zip(tensor_inputs(node), taken, strict=True)).items():
            value = source.meta["val"]
            moved += local_numel(value.numel(), placements, sizes) * value.element_size()
        for result, placements in zip(outputs_of(node), made, strict=True):
            if result is not None:
                moved += local_numel(result.numel(), placements, sizes) * result.element_size()
        shared = math.prod(
            sizes[axis]
            for axis, strategy in zip(self.axes, chosen, strict=True)
            if strategy.shares_work
        )
        operations = flops_of(node) / shared
        if torch.Tag.pointwise in getattr(node.target, "tags", ()):
            moved *= FUSED
        dtype = _NAMES.get(str(_dtype_of(node)), "f32")
        return self.rates.seconds(moved, operations, dtype) - self.rates.launch if moved else 0.0


def fits(shape: Sequence[int], placements: Placements, sizes: Sequence[int]) -> bool:
    """Whether axes that shard one dimension together divide it, and none does so in pieces."""
    left = list(shape)
    seen: dict[int, bool] = {}
    for placement, ranks in zip(placements, sizes, strict=True):
        if isinstance(placement, Shard):
            if placement.dim in seen and (seen[placement.dim] or placement.pieces):
                return False
            seen[placement.dim] = bool(placement.pieces)
            if left[placement.dim] % ranks:
                return False
            left[placement.dim] //= ranks
    return True


_NAMES = {
    "torch.bfloat16": "bf16",
    "torch.float16": "f16",
    "torch.float64": "f64",
    "torch.float32": "f32",
}


def _dtype_of(node: Node) -> torch.dtype | None:
    first = next((value for value in outputs_of(node) if value is not None), None)
    return None if first is None else first.dtype


def _text(strategy: Strategy) -> str:
    return f"{', '.join(map(str, strategy.inputs))} -> {', '.join(map(str, strategy.outputs))}"
