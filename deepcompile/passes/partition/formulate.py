"""A graph on a mesh as a problem for the solver, and its solution as placements of the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from deepcompile.cost.links import Link
from deepcompile.cost.rates import Rates
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import (
    REPLICATE,
    Placement,
    Placements,
    Shard,
    local_numel,
)
from deepcompile.passes.partition.moves import Mover
from deepcompile.passes.partition.options import Option, Options
from deepcompile.passes.partition.problem import MemoryRow, Problem, Solution, Use, Value
from deepcompile.passes.partition.sites import Parameter, Sites, TensorId
from deepcompile.passes.partition.strategy import outputs_of

SLACK = 1.1
"""How much more than its equal share a rank's parameters may take where no limit is given."""


@dataclass(frozen=True)
class Choice:
    """Placements of a graph.

    Attributes:
        nodes: the option of each node that was decided.
        parameters: placements by name, data axes included.
        solution: of the solver.
    """

    nodes: Mapping[Node, Option]
    parameters: Mapping[str, Placements]
    solution: Solution


class Formulation:
    """Groups, values and uses of a graph, in an order that its nodes give.

    Args:
        sites: the graph.
        mesh: what it is to run on.
        rates: of each rank's device.
        links: of each axis.
        limit: bytes of parameters, gradients and optimizer state on a rank; None for `SLACK` of
            an equal share on the tensor axes; infinite for no limit.
        optimizer_bytes: of state for each number of a parameter.
        allowed: by name of a parameter, the placements it may have; missing for any.
    """

    def __init__(
        self,
        sites: Sites,
        mesh: Mesh,
        rates: Rates,
        links: Sequence[Link],
        *,
        limit: float | None = None,
        optimizer_bytes: float = 8.0,
        allowed: Mapping[str, Sequence[Placements]] | None = None,
    ) -> None:
        self.sites, self.mesh, self.rates, self.links = sites, mesh, rates, tuple(links)
        self.options = Options(sites, mesh, rates)
        self.mover = Mover(mesh.sizes, self.links, rates.bandwidth, rates.launch)
        self.allowed = allowed or {}
        self.optimizer_bytes = optimizer_bytes
        self._costs: list[np.ndarray] = []
        self._labels: list[str] = []
        self._made: dict[TensorId, tuple[int, list[Placements]]] = {}
        self._taken: dict[TensorId, list[tuple[int, list[Placements | None], bool]]] = {}
        self.group_of: dict[Node, int] = {}
        self.group_of_parameter: dict[str, int] = {}
        self.parameter_options: dict[str, list[Placements]] = {}
        self._memory: dict[int, np.ndarray] = {}
        self._whole = 0.0
        self._add_parameters()
        self._add_inputs()
        self._add_nodes()
        self._add_outputs()
        self.problem = self._problem(limit)

    def _group(self, costs: Sequence[float], label: str) -> int:
        self._costs.append(np.asarray(costs, dtype=np.float64))
        self._labels.append(label)
        return len(self._costs) - 1

    def _replicated(self) -> Placements:
        return (REPLICATE,) * len(self.mesh.sizes)

    def _on_tensor_axes(self, placements: Placements) -> Placements:
        return tuple(
            REPLICATE if self.mesh.is_data(axis) else place for axis, place in enumerate(placements)
        )

    # -- groups ---------------------------------------------------------------------------------

    def _add_parameters(self) -> None:
        for parameter in self.sites.parameters:
            options = self._placements_of(parameter)
            held = np.array([self.bytes_of(parameter, option) for option in options])
            costs = [self.data_seconds(parameter, option) for option in options]
            group = self._group(costs, parameter.name)
            self.group_of_parameter[parameter.name] = group
            self.parameter_options[parameter.name] = options
            self._memory[group] = held
            self._whole += self.bytes_of(parameter, self._replicated())
            inside = [self._on_tensor_axes(option) for option in options]
            self._made[(parameter.source, 0)] = group, inside
            for node, position in parameter.sinks:
                tensor = self.sites.inputs_of(node)[position]
                self._taken.setdefault(tensor, []).append((group, list(inside), True))

    def _placements_of(self, parameter: Parameter) -> list[Placements]:
        if parameter.placements is not None:
            return [parameter.placements]
        if parameter.name in self.allowed:
            return list(self.allowed[parameter.name])
        shape = tuple(parameter.tensor.shape)
        found: list[Placements] = [()]
        # Data axes come last: they take a dimension that tensor axes leave alone.
        order = sorted(range(len(self.mesh.sizes)), key=lambda axis: self.mesh.is_data(axis))
        for _ in order:
            found = [
                (*known, place)
                for known in found
                for place in self._single(parameter, shape, order[len(known)], known)
            ]
        arranged = []
        for option in found:
            placed: list[Placement] = [REPLICATE] * len(order)
            for axis, place in zip(order, option, strict=True):
                placed[axis] = place
            if self.options.fits(shape, tuple(placed)):
                arranged.append(tuple(placed))
        return arranged

    def _single(
        self, parameter: Parameter, shape: tuple[int, ...], axis: int, known: tuple[Placement, ...]
    ) -> list[Placement]:
        ranks = self.mesh.sizes[axis]
        taken = {place.dim for place in known if isinstance(place, Shard)}
        plain = [
            Shard(dim) for dim, extent in enumerate(shape) if extent % ranks == 0 and extent > 1
        ]
        if self.mesh.is_data(axis):
            free = [place for place in plain if place.dim not in taken]
            return [REPLICATE, *free[:1]]
        pieces = [
            shard
            for shard in self.options.candidates.of((parameter.source, 0))
            if len(set(shard.pieces)) == 1 and shard.pieces[0] % ranks == 0
        ]
        return [REPLICATE, *plain, *pieces]

    def bytes_of(self, parameter: Parameter, placements: Placements) -> float:
        """Of the parameter on a rank, with its gradient and optimizer state if it trains."""
        count = local_numel(parameter.tensor.numel(), placements, self.mesh.sizes)
        itemsize = parameter.tensor.element_size()
        return count * (itemsize + (itemsize + self.optimizer_bytes if parameter.trains else 0.0))

    def data_seconds(self, parameter: Parameter, placements: Placements) -> float:
        """What data axes cost a parameter: gathers before use, the reduction of its gradient."""
        inside = self._on_tensor_axes(placements)
        here = local_numel(parameter.tensor.numel(), inside, self.mesh.sizes)
        size = float(here * parameter.tensor.element_size())
        seconds = 0.0
        for axis, place in enumerate(placements):
            ranks, link = self.mesh.sizes[axis], self.links[axis]
            if not self.mesh.is_data(axis) or ranks == 1:
                continue
            if isinstance(place, Shard):
                gathers = 2 if parameter.trains else 1
                seconds += gathers * link.all_gather(size, ranks)
                seconds += link.reduce_scatter(size, ranks) if parameter.trains else 0.0
                size /= ranks
            elif parameter.trains:
                seconds += link.all_reduce(size, ranks)
        return seconds

    def _add_inputs(self) -> None:
        for node in self.sites.givens():
            self._made[(node, 0)] = self._group([0.0], node.name), [self._replicated()]

    def _add_nodes(self) -> None:
        for node in self.sites.steps():
            options = self.options.of(node)
            group = self.group_of[node] = self._group(
                [option.seconds for option in options], node.name
            )
            for index, value in enumerate(outputs_of(node)):
                if value is not None:
                    made = [option.outputs[index] for option in options]
                    self._made[(node, index)] = group, made
            late = node not in self.sites.forward
            for position, tensor in enumerate(self.sites.inputs_of(node)):
                taken: list[Placements | None] = [option.inputs[position] for option in options]
                self._taken.setdefault(tensor, []).append((group, taken, late))

    def _add_outputs(self) -> None:
        output = self.sites.graph.output_node()
        sinks = {
            position
            for parameter in self.sites.parameters
            for node, position in parameter.sinks
            if node is output
        }
        group = self._group([0.0], "output")
        for position, tensor in enumerate(self.sites.inputs_of(output)):
            if position in sinks or tensor[0] in self.sites.hidden:
                continue
            late = tensor[0] not in self.sites.forward
            self._taken.setdefault(tensor, []).append((group, [self._replicated()], late))

    # -- the problem ----------------------------------------------------------------------------

    def _problem(self, limit: float | None) -> Problem:
        values, uses = [], []
        by_shape: dict[tuple[int, ...], list[Placements]] = {}
        known: dict[TensorId, list[Placements]] = {}
        for tensor, (_, made) in self._made.items():
            asked = (p for _, taken, _ in self._taken.get(tensor, ()) for p in taken)
            known[tensor] = list(dict.fromkeys([*made, *(p for p in asked if p is not None)]))
            by_shape.setdefault(_shape(tensor), []).extend(known[tensor])
        for shape, placements in by_shape.items():
            self.mover.teach(shape, list(dict.fromkeys(placements)))
        tables: dict[object, np.ndarray] = {}
        for tensor, (group, made) in self._made.items():
            users = self._taken.get(tensor)
            if not users:
                continue
            places = {placements: index for index, placements in enumerate(known[tensor])}
            value = outputs_of(tensor[0])[tensor[1]]
            assert value is not None
            key = (_shape(tensor), value.element_size(), tuple(places))
            if key not in tables:
                tables[key] = self._table(_shape(tensor), value.element_size(), known[tensor])
            keeps = tensor[0] not in self.sites.by_source
            made_in = tuple(places[p] for p in made)
            values.append(Value(group, made_in, tables[key], keeps))
            for user, taken, late in users:
                index = tuple(-1 if p is None else places[p] for p in taken)
                uses.append(Use(len(values) - 1, user, index, late))
        return Problem(self._costs, values, uses, self._rows(limit), self._labels)

    def _table(
        self, shape: tuple[int, ...], itemsize: int, placements: Sequence[Placements]
    ) -> np.ndarray:
        table = np.full((len(placements), len(placements)), math.inf)
        for row, source in enumerate(placements):
            paths = self.mover.paths(shape, itemsize, source)
            for column, target in enumerate(placements):
                if target in paths:
                    table[row, column] = paths[target][0]
        return table

    def _rows(self, limit: float | None) -> list[MemoryRow]:
        if not self._memory or limit == math.inf:
            return []
        if all(len(held) == 1 for held in self._memory.values()):
            return []
        if limit is None:
            ranks = math.prod(self.mesh.sizes[axis] for axis in self.options.axes)
            smallest = sum(float(held.min()) for held in self._memory.values())
            limit = max(SLACK * self._whole / ranks, smallest)
        return [MemoryRow(limit, self._memory, name="parameters")]

    def choice_of(self, solution: Solution) -> Choice:
        """The solver's answer in terms of the graph."""
        nodes = {
            node: self.options.of(node)[solution.options[group]]
            for node, group in self.group_of.items()
        }
        parameters = {
            name: self.parameter_options[name][solution.options[group]]
            for name, group in self.group_of_parameter.items()
        }
        return Choice(nodes, parameters, solution)


def _shape(tensor: TensorId) -> tuple[int, ...]:
    value = outputs_of(tensor[0])[tensor[1]]
    assert value is not None
    return tuple(value.shape)
