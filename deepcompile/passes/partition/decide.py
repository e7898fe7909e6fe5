"""Placements for graphs on a mesh: looked up, or formulated, solved and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from deepcompile.cost.links import Link, links_of
from deepcompile.cost.rates import Rates
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE, Placement, Placements
from deepcompile.passes.partition.formulate import Choice, Formulation
from deepcompile.passes.partition.moves import Mover
from deepcompile.passes.partition.sites import Sites
from deepcompile.passes.partition.solve import solve
from deepcompile.passes.partition.stored import key_of, load, store
from deepcompile.passes.partition.strategy import outputs_of


@dataclass(frozen=True)
class Question:
    """What is to be decided; see `Formulation` for the fields."""

    graphs: tuple[Sites, ...]
    mesh: Mesh
    rates: Rates
    device: str
    limit: float | None = None
    optimizer_bytes: float = 8.0
    allowed: Mapping[str, Sequence[Placements]] = field(default_factory=dict)

    @cached_property
    def links(self) -> tuple[Link, ...]:
        return links_of(self.mesh, self.device)

    @cached_property
    def formulation(self) -> Formulation:
        """Made when somebody asks: an answer that was kept needs none."""
        return Formulation(
            self.graphs,
            self.mesh,
            self.rates,
            self.links,
            limit=self.limit,
            optimizer_bytes=self.optimizer_bytes,
            allowed=self.allowed,
        )

    def answer(self, folder: Path | None) -> Choice:
        """The choice; kept in a folder if there is one.

        Raises:
            PartitionError: as `solve` does.
        """
        if folder is None:
            return self._solved()
        key = key_of(
            self.graphs,
            self.mesh,
            self.rates,
            self.links,
            self.limit,
            self.optimizer_bytes,
            self.allowed,
        )
        found = load(folder, key, self.graphs)
        if found is None:
            found = self._solved()
            store(folder, key, found, self.graphs)
        return found

    def _solved(self) -> Choice:
        return self.formulation.choice_of(solve(self.formulation.problem))

    def mover(self, choice: Choice) -> Mover:
        """The ways between placements that a choice has; the same wherever the choice is from."""
        mover = Mover(self.mesh.sizes, self.links, self.rates.bandwidth, self.rates.launch)
        whole: Placements = (REPLICATE,) * len(self.mesh.sizes)
        by_shape: dict[tuple[int, ...], dict[Placements, None]] = {}
        for sites in self.graphs:
            for node in sites.steps():
                option = choice.nodes[node]
                for value, placements in zip(outputs_of(node), option.outputs, strict=True):
                    if value is not None:
                        by_shape.setdefault(tuple(value.shape), {whole: None})[placements] = None
                for (maker, index), placements in zip(
                    sites.inputs_of(node), option.inputs, strict=True
                ):
                    value = outputs_of(maker)[index]
                    if value is not None:
                        by_shape.setdefault(tuple(value.shape), {whole: None})[placements] = None
            for parameter in sites.parameters:
                inside = self._inside(choice.parameters[parameter.name])
                shape = tuple(parameter.tensor.shape)
                by_shape.setdefault(shape, {whole: None})[inside] = None
        for shape, known in by_shape.items():
            mover.teach(shape, list(known))
        return mover

    def _inside(self, placements: Placements) -> Placements:
        found: list[Placement] = list(placements)
        for axis in range(len(found)):
            if axis not in self.mesh.tensor_axes:
                found[axis] = REPLICATE
        return tuple(found)
