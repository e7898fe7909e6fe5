"""What a joint graph is made of for partitioning: parameters, inputs, outputs, tensors, phases."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.fx import Graph, Node

from deepcompile.ir.placements import Placements
from deepcompile.passes.partition.strategy import outputs_of, tensor_inputs

TensorId = tuple[Node, int]
"""A tensor: the node that makes it and which of its outputs it is."""


@dataclass(frozen=True)
class Parameter:
    """A tensor that the model keeps, and that an optimizer may change.

    Attributes:
        name: as in `named_parameters`.
        source: the node whose value is the whole parameter.
        sinks: where its gradient is taken: nodes and the position among their tensor inputs.
        placements: where it is decided already; one of each axis.
        trains: whether it gets a gradient.
    """

    name: str
    source: Node
    sinks: tuple[tuple[Node, int], ...] = ()
    placements: Placements | None = None
    trains: bool = True

    @property
    def tensor(self) -> torch.Tensor:
        """Its example value."""
        value = self.source.meta["val"]
        assert isinstance(value, torch.Tensor)
        return value

    @property
    def bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()


@dataclass(frozen=True, eq=False)
class Sites:
    """A graph and what in it is special.

    Attributes:
        graph: joint, or of an inference.
        parameters: in the order of the graph.
        hidden: nodes that only lead from a placeholder to a parameter, or behind a gradient: they
            have no part in the plan and are made anew.
    """

    graph: Graph
    parameters: tuple[Parameter, ...]
    hidden: frozenset[Node] = frozenset()

    @cached_property
    def by_source(self) -> Mapping[Node, Parameter]:
        return {parameter.source: parameter for parameter in self.parameters}

    @cached_property
    def forward(self) -> frozenset[Node]:
        """Nodes that outputs of the forward pass need.

        Those are the outputs that no tangent reaches. Everything else is of the backward pass.
        """
        late = _reached(node for node in self.graph.find_nodes(op="placeholder") if _tangent(node))
        outputs = [node for node in self.graph.output_node().all_input_nodes if node not in late]
        return frozenset(_ancestors(outputs))

    def steps(self) -> Iterator[Node]:
        """The nodes to be decided, in order: those that make tensors from tensors."""
        for node in self.graph.nodes:
            if node.op != "call_function" or node in self.hidden:
                continue
            if node.target is operator.getitem or node in self.by_source:
                continue
            if any(value is not None for value in outputs_of(node)):
                yield node

    def givens(self) -> Iterator[Node]:
        """Inputs and constants: tensors that every rank has, whatever is decided."""
        for node in self.graph.nodes:
            if node.op not in ("placeholder", "get_attr") or node in self.by_source:
                continue
            if node not in self.hidden and outputs_of(node)[0] is not None:
                yield node

    def maker_of(self, node: Node) -> TensorId:
        """The tensor that a node stands for: `getitem` stands for one of another's outputs."""
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, Node)
            assert isinstance(index, int)
            return source, index
        return node, 0

    def inputs_of(self, node: Node) -> list[TensorId]:
        """The tensors that a node takes, as often as it takes them."""
        return [self.maker_of(source) for source in tensor_inputs(node)]


def plain_sites(
    graph: Graph, names: Mapping[Node, str], gradients: Mapping[Node, Node | None]
) -> Sites:
    """Of a graph whose placeholders are whole parameters.

    Args:
        graph: joint.
        names: of the placeholders that are parameters.
        gradients: the node of each one's gradient, None or missing for those without.
    """
    output = graph.output_node()
    positions: dict[Node, list[int]] = {}
    for position, node in enumerate(tensor_inputs(output)):
        positions.setdefault(node, []).append(position)
    parameters = []
    taken: set[int] = set()
    for source, name in names.items():
        gradient = gradients.get(source)
        sinks: tuple[tuple[Node, int], ...] = ()
        if gradient is not None:
            # Two parameters of one gradient take an output each.
            place = next((p for p in positions[gradient] if p not in taken), None)
            if place is not None:
                taken.add(place)
                sinks = ((output, place),)
        parameters.append(Parameter(name, source, sinks, None, bool(sinks)))
    return Sites(graph, tuple(parameters))


def _tangent(node: Node) -> bool:
    return str(node.target).startswith("tangents")


def _reached(start: Iterable[Node]) -> set[Node]:
    found: set[Node] = set()
    queue = list(start)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue.extend(node.users)
    return found


def _ancestors(start: Iterable[Node]) -> set[Node]:
    found: set[Node] = set()
    queue = list(start)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue.extend(node.all_input_nodes)
    return found
