"""From one placement of a tensor to another: the steps, and what they take.

Axes are nested from the outermost inwards: where two of them shard one dimension, the outer one
takes the larger parts. So a step on one axis is possible only while no inner axis shards the
dimensions that it changes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from deepcompile.cost.links import Link
from deepcompile.ir.placements import (
    REPLICATE,
    Partial,
    Placement,
    Placements,
    Replicate,
    Shard,
    divides,
)

StepKind = Literal[
    "all_gather", "all_reduce", "reduce_scatter", "all_to_all", "part", "spread", "own"
]
COLLECTIVES: frozenset[str] = frozenset(
    {"all_gather", "all_reduce", "reduce_scatter", "all_to_all"}
)


@dataclass(frozen=True, slots=True)
class Step:
    """One change on one axis.

    Attributes:
        kind: which; the last three are local: "part" takes this rank's part of what it has whole,
            "spread" puts its part among zeros, "own" leaves the value to one rank and zeros to
            the others.
        axis: of the mesh.
        source: the placement on that axis before.
        target: the one after.
    """

    kind: StepKind
    axis: int
    source: Placement
    target: Placement


def kind_of(source: Placement, target: Placement) -> StepKind | None:
    """What changes one placement into another in one step; None if nothing does."""
    match source, target:
        case Shard(), Replicate():
            return "all_gather"
        case Partial(), Replicate():
            return "all_reduce"
        case Partial(), Shard():
            return "reduce_scatter"
        case Shard(first), Shard(second) if first != second:
            return "all_to_all"
        case Replicate(), Shard():
            return "part"
        case Shard(), Partial("sum"):
            return "spread"
        case Replicate(), Partial("sum"):
            return "own"
        case _:
            return None


@dataclass(frozen=True)
class Mover:
    """What moves take on a mesh.

    Attributes:
        sizes: ranks of each axis.
        links: of each axis.
        bandwidth: bytes a second of a rank's own memory.
        launch: seconds that a kernel costs beside its work.
    """

    sizes: tuple[int, ...]
    links: tuple[Link, ...]
    bandwidth: float
    launch: float

    def path(
        self, shape: Sequence[int], itemsize: int, source: Placements, target: Placements
    ) -> tuple[float, tuple[Step, ...]] | None:
        """The quickest way, with its seconds; None if there is none."""
        return self.paths(tuple(shape), itemsize, source).get(target)

    def paths(
        self, shape: tuple[int, ...], itemsize: int, source: Placements
    ) -> dict[Placements, tuple[float, tuple[Step, ...]]]:
        """The quickest ways from one placement to all others that can be reached."""
        key = (shape, itemsize, source)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._search(shape, itemsize, source)
        return found

    def teach(self, shape: tuple[int, ...], placements: Sequence[Placements]) -> None:
        """Let paths of tensors of a shape pass through and end in placements on single axes."""
        known = self._single.setdefault(shape, [{} for _ in self.sizes])
        for placed in placements:
            for axis, placement in enumerate(placed):
                if placement not in known[axis]:
                    known[axis][placement] = None
                    for key in [key for key in self._found if key[0] == shape]:
                        del self._found[key]

    @cached_property
    def _found(
        self,
    ) -> dict[
        tuple[tuple[int, ...], int, Placements],
        dict[Placements, tuple[float, tuple[Step, ...]]],
    ]:
        return {}

    @cached_property
    def _single(self) -> dict[tuple[int, ...], list[dict[Placement, None]]]:
        return {}

    def _search(
        self, shape: tuple[int, ...], itemsize: int, source: Placements
    ) -> dict[Placements, tuple[float, tuple[Step, ...]]]:
        whole = math.prod(shape) * itemsize
        order = itertools.count()
        queue: list[tuple[float, int, Placements, tuple[Step, ...]]] = [
            (0.0, next(order), source, ())
        ]
        found: dict[Placements, tuple[float, tuple[Step, ...]]] = {}
        while queue:
            seconds, _, state, steps = heapq.heappop(queue)
            if state in found:
                continue
            found[state] = seconds, steps
            # Parts that were made from a whole are made for who wants them, not to be reduced.
            made = {step.axis for step in steps if step.kind in ("spread", "own")}
            for step in self._steps(shape, state):
                if step.axis in made:
                    continue
                after = (*state[: step.axis], step.target, *state[step.axis + 1 :])
                if after not in found:
                    taken = seconds + self.seconds(step, whole, state)
                    heapq.heappush(queue, (taken, next(order), after, (*steps, step)))
        return found

    def _steps(self, shape: tuple[int, ...], state: Placements) -> Iterator[Step]:
        known = self._single.get(shape, [{} for _ in self.sizes])
        for axis, source in enumerate(state):
            inner = {place.dim for place in state[axis + 1 :] if isinstance(place, Shard)}
            if isinstance(source, Shard) and source.dim in inner:
                continue
            for target in {**known[axis], REPLICATE: None}:
                if target == source:
                    continue
                if isinstance(target, Shard):
                    others = [place for i, place in enumerate(state) if i != axis]
                    shared = [p for p in others if isinstance(p, Shard) and p.dim == target.dim]
                    if target.dim in inner or any(p.pieces or target.pieces for p in shared):
                        continue
                    parts = math.prod(
                        size
                        for size, place in zip(self.sizes, state, strict=True)
                        if place in shared
                    )
                    if not divides(shape[target.dim], target, self.sizes[axis] * parts):
                        continue
                kind = kind_of(source, target)
                if kind is not None:
                    yield Step(kind, axis, source, target)

    def seconds(self, step: Step, whole: float, state: Placements) -> float:
        """Of one step from a state, for a tensor of `whole` bytes."""
        ranks, link = self.sizes[step.axis], self.links[step.axis]
        here = whole / math.prod(
            size for size, place in zip(self.sizes, state, strict=True) if isinstance(place, Shard)
        )
        copy = 2 * here / self.bandwidth + self.launch
        match step.kind:
            case "all_gather":
                gathered = here * ranks
                reorder = 2 * gathered / self.bandwidth + self.launch
                return link.all_gather(gathered, ranks) + (_inner(step.source) and reorder)
            case "all_reduce":
                return link.all_reduce(here, ranks)
            case "reduce_scatter":
                return link.reduce_scatter(here, ranks) + (_inner(step.target) and copy)
            case "all_to_all":
                return link.all_to_all(here, ranks) + 2 * copy
            case "part":
                return copy / ranks
            case "spread":
                return copy * (ranks + 1) / 2
            case _:
                return copy


def _inner(placement: Placement) -> bool:
    """Whether a tensor must be reordered for a collective, which works on whole rows in front."""
    return isinstance(placement, Shard) and (placement.dim > 0 or bool(placement.pieces))
