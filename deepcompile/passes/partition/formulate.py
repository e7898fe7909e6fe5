"""A graph on a mesh as a problem for the solver, and its solution as placements of the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
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
    placements_text,
)
from deepcompile.passes.partition.moves import Mover
from deepcompile.passes.partition.options import FREE, Option, Options, fits
from deepcompile.passes.partition.problem import (
    MemoryRow,
    Problem,
    Seconds,
    Solution,
    Use,
    Value,
)
from deepcompile.passes.partition.sites import Parameter, Sites, TensorId
from deepcompile.passes.partition.strategy import Rule, outputs_of

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
    """Groups, values and uses of graphs, in an order that their nodes give.

    Args:
        graphs: one, or the several that a model breaks into; a parameter has one place in all.
        mesh: what it is to run on.
        rates: of each rank's device.
        links: of each axis.
        limit: bytes on a rank of parameters, gradients, optimizer state and of what is saved for
            backward; None for `SLACK` of an equal share, on the tensor axes, of the first three;
            infinite for no limit.
        optimizer_bytes: of state for each number of a parameter.
        allowed: by name of a parameter, the placements it may have; missing for any.
    """

    def __init__(
        self,
        graphs: Sequence[Sites],
        mesh: Mesh,
        rates: Rates,
        links: Sequence[Link],
        *,
        limit: float | None = None,
        optimizer_bytes: float = 8.0,
        allowed: Mapping[str, Sequence[Placements]] | None = None,
    ) -> None:
        self.graphs, self.mesh, self.rates, self.links = tuple(graphs), mesh, rates, tuple(links)
        self.options = {sites: Options(sites, mesh, rates) for sites in self.graphs}
        self._saves_memory = limit is not None and math.isfinite(limit)
        self._saved: dict[int, Seconds] = {}
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
        for sites in self.graphs:
            self._add_inputs(sites)
            self._add_nodes(sites)
            self._add_outputs(sites)
        self.problem = self._problem(limit)

    @property
    def rules(self) -> dict[Node, Rule | None]:
        """Of all nodes."""
        return {
            n: r for options in self.options.values() for n, r in options.candidates.rules.items()
        }

    def _group(self, costs: Sequence[float], label: str) -> int:
        self._costs.append(np.asarray(costs, dtype=np.float64))
        self._labels.append(label)
        return len(self._costs) - 1

    def _replicated(self) -> Placements:
        return (REPLICATE,) * len(self.mesh.sizes)

    def _on_tensor_axes(self, placements: Placements) -> Placements:
        return tuple(
            place if axis in self.mesh.tensor_axes else REPLICATE
            for axis, place in enumerate(placements)
        )

    # -- groups ---------------------------------------------------------------------------------

    def _add_parameters(self) -> None:
        for sites in self.graphs:
            for parameter in sites.parameters:
                if parameter.name not in self.group_of_parameter:
                    self._add_parameter(parameter)
                group = self.group_of_parameter[parameter.name]
                options = self.parameter_options[parameter.name]
                inside = [self._on_tensor_axes(option) for option in options]
                self._made[(parameter.source, 0)] = group, inside
                for node, position in parameter.sinks:
                    tensor = sites.inputs_of(node)[position]
                    self._taken.setdefault(tensor, []).append((group, list(inside), True))

    def _add_parameter(self, parameter: Parameter) -> None:
        options = self._placements_of(parameter)
        held = np.array([self.bytes_of(parameter, option) for option in options])
        costs = [self.data_seconds(parameter, option) for option in options]
        group = self._group(costs, parameter.name)
        self.group_of_parameter[parameter.name] = group
        self.parameter_options[parameter.name] = options
        self._memory[group] = held
        self._whole += self.bytes_of(parameter, self._replicated())

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
            if fits(shape, tuple(placed), self.mesh.sizes):
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
        if ranks == 1:
            return [REPLICATE]
        pieces = [
            shard
            for sites, options in self.options.items()
            for other in sites.parameters
            if other.name == parameter.name
            for shard in options.candidates.of((other.source, 0))
            if len(set(shard.pieces)) == 1 and shard.pieces[0] % ranks == 0
        ]
        return list(dict.fromkeys([REPLICATE, *plain, *pieces]))

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

    def _add_inputs(self, sites: Sites) -> None:
        for node in sites.givens():
            self._made[(node, 0)] = self._group([0.0], node.name), [self._replicated()]

    def _add_nodes(self, sites: Sites) -> None:
        saved = saved_for_backward(sites) if self._saves_memory else frozenset()
        for node in sites.steps():
            options = self.options[sites].of(node)
            group = self.group_of[node] = self._group(
                [option.seconds for option in options], node.name
            )
            for index, value in enumerate(outputs_of(node)):
                if value is not None:
                    made = [option.outputs[index] for option in options]
                    self._made[(node, index)] = group, made
            if node in saved:
                self._saved[group] = np.array([bytes_made(node, o, self.mesh) for o in options])
            late = node not in sites.forward
            for position, tensor in enumerate(sites.inputs_of(node)):
                taken: list[Placements | None] = [option.inputs[position] for option in options]
                self._taken.setdefault(tensor, []).append((group, taken, late))

    def _add_outputs(self, sites: Sites) -> None:
        output = sites.graph.output_node()
        sinks = {
            position
            for parameter in sites.parameters
            for node, position in parameter.sinks
            if node is output
        }
        group = self._group([0.0], "output")
        for position, tensor in enumerate(sites.inputs_of(output)):
            if position in sinks or tensor[0] in sites.hidden:
                continue
            late = tensor[0] not in sites.forward
            self._taken.setdefault(tensor, []).append((group, [self._replicated()], late))

    # -- the problem ----------------------------------------------------------------------------

    def _problem(self, limit: float | None) -> Problem:
        values, uses = [], []
        by_shape: dict[tuple[int, ...], list[Placements]] = {}
        known: dict[TensorId, list[Placements]] = {}
        for tensor, (_, made) in self._made.items():
            asked = (p for _, taken, _ in self._taken.get(tensor, ()) for p in taken)
            found = {*made, *(p for p in asked if p is not None)}
            known[tensor] = sorted(found, key=placements_text)  # alike in layers that are alike
            by_shape.setdefault(_shape(tensor), []).extend(known[tensor])
        for shape, placements in by_shape.items():
            self.mover.teach(shape, list(dict.fromkeys(placements)))
        tables: dict[object, np.ndarray] = {}
        parameters = {p.source for sites in self.graphs for p in sites.parameters}
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
            keeps = tensor[0] not in parameters and not self._saves_memory
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
        if limit == math.inf or not self._memory:
            return []
        if limit is not None:
            held = {**self._memory, **self._saved}
            return [MemoryRow(limit, held, name="parameters, their state, and saved tensors")]
        if all(len(held) == 1 for held in self._memory.values()):
            return []
        ranks = math.prod(self.mesh.sizes[axis] for axis in self.mesh.tensor_axes)
        smallest = sum(float(held.min()) for held in self._memory.values())
        limit = max(SLACK * self._whole / ranks, smallest)
        return [MemoryRow(limit, self._memory, name="parameters and their state")]

    def choice_of(self, solution: Solution) -> Choice:
        """The solver's answer in terms of the graph."""
        nodes = {
            node: self.options[sites].of(node)[solution.options[self.group_of[node]]]
            for sites in self.graphs
            for node in sites.steps()
        }
        parameters = {
            name: self.parameter_options[name][solution.options[group]]
            for name, group in self.group_of_parameter.items()
        }
        return Choice(nodes, parameters, solution)


def saved_for_backward(sites: Sites) -> frozenset[Node]:
    """Nodes of forward whose memory backward reads, itself or a view of it, other than pointwise.

    What pointwise operations read is computed again from what others read, or saved in its place.
    """
    late = {
        source
        for node in sites.steps()
        if node not in sites.forward
        and node.target not in FREE
        and torch.Tag.pointwise not in getattr(node.target, "tags", ())
        for source, _ in sites.inputs_of(node)
    }
    found = set()
    for node in sorted(late & sites.forward, key=lambda node: node.name):
        while node.target in FREE:
            (node, _), *_ = sites.inputs_of(node)
        if node.op == "call_function" and node not in sites.hidden and node not in sites.by_source:
            found.add(node)
    return frozenset(found)


def bytes_made(node: Node, option: Option, mesh: Mesh) -> float:
    """What one rank makes at a node."""
    return float(
        sum(
            local_numel(value.numel(), placements, mesh.sizes) * value.element_size()
            for value, placements in zip(outputs_of(node), option.outputs, strict=True)
            if value is not None
        )
    )


def why_not(extent: int, ranks: int) -> str:
    """Why a dimension is not sharded, and the nearest number of ranks for which it would be."""
    fitting = [count for count in range(1, extent + 1) if extent % count == 0]
    near = min(fitting, key=lambda count: (abs(count - ranks), count), default=1)
    return f"{extent} is not divisible by {ranks}; by {near} it is"


def _shape(tensor: TensorId) -> tuple[int, ...]:
    value = outputs_of(tensor[0])[tensor[1]]
    assert value is not None
    return tuple(value.shape)
