"""The graph of one rank, from the graph of one device and the placements that were chosen.

Every rank gets the same graph: what depends on the rank is read when it runs.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node

from deepcompile.errors import PartitionError
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import (
    REPLICATE,
    Partial,
    Placements,
    Shard,
    local_shape,
    placements_text,
)
from deepcompile.passes.partition.emit import Emitter
from deepcompile.passes.partition.formulate import Choice
from deepcompile.passes.partition.moves import COLLECTIVES, Mover, Step
from deepcompile.passes.partition.options import Option
from deepcompile.passes.partition.sites import Parameter, Sites, TensorId
from deepcompile.passes.partition.strategy import Rule, outputs_of, tensor_inputs

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


@dataclass
class _Pending:
    """A collective that has been launched and not been waited for."""

    step: Step
    launched: Node
    before: Node


@dataclass
class Lowering:
    """Builds a rank's graph node by node.

    Args:
        sites: the graph of one device.
        mesh: the ranks.
        groups: the name of the process group on each axis.
        choice: the options.
        rules: of nodes.
        mover: knows the ways between placements.
    """

    sites: Sites
    mesh: Mesh
    groups: Sequence[str]
    choice: Choice
    rules: Mapping[Node, Rule | None]
    mover: Mover
    graph: Graph = field(init=False, default_factory=Graph)

    def __post_init__(self) -> None:
        mode = _mode_of(self.sites.graph)
        data = [axis for axis in range(len(self.mesh.sizes)) if self.mesh.is_data(axis)]
        self.emit = Emitter(self.graph, mode, self.mesh.sizes, self.groups, data)
        self._copies: dict[Node, Node] = {}
        self._have: dict[TensorId, dict[Placements, Node | _Pending]] = {}
        self._wanted: dict[TensorId, dict[Placements, None]] = {}
        self._whole = (REPLICATE,) * len(self.mesh.sizes)
        self._sinks = {
            node: parameter
            for parameter in self.sites.parameters
            for node, _ in parameter.sinks
            if node.op != "output"
        }

    def run(self) -> Graph:
        """The graph of one rank.

        Raises:
            PartitionError: when a rank's tensor has another shape than planned, which is a mistake
                in a rule; the text names the node.
        """
        self._find_wanted()
        for node in self.sites.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                self._output(node)
            elif node in self._sinks:
                value = self._gradient(self._sinks[node], tensor_inputs(node)[0])
                # What is behind a marker is taken over with what it says of strides.
                only_returned = all(user.op == "output" for user in node.users)
                self._copies[node] = value if only_returned else self.emit.strided_as(value, node)
            elif node in self.sites.by_source:
                self._parameter(self.sites.by_source[node], self._copied(node.args[0]))
            elif node.target is operator.getitem and not self._is_kept(node):
                continue
            elif node in self.choice.nodes:
                self._step(node, self.choice.nodes[node])
            elif self._is_kept(node):
                self._copy(node)
        self.graph.eliminate_dead_code(lambda node: node.is_impure())
        self.graph.lint()
        return self.graph

    # -- nodes ----------------------------------------------------------------------------------

    def _is_kept(self, node: Node) -> bool:
        """Whether a node is taken over as it is: it makes no tensor, or leads to a parameter."""
        if node in self.sites.hidden:
            return all(source in self._copies for source in node.all_input_nodes)
        if node.target is operator.getitem:
            return node.args[0] in self._copies
        return node not in self.choice.nodes

    def _placeholder(self, node: Node) -> None:
        copy = self.graph.placeholder(str(node.target))
        copy.name = node.name
        copy.meta = dict(node.meta)
        parameter = self.sites.by_source.get(node)
        if parameter is None:
            self._copies[node] = copy
            if outputs_of(node)[0] is not None and node not in self.sites.hidden:
                self._have[(node, 0)] = {self._whole: copy}
            return
        placements = self.choice.parameters[parameter.name]
        with self.emit.mode:
            shape = local_shape(parameter.tensor.shape, placements, self.mesh.sizes)
            copy.meta["val"] = parameter.tensor.new_empty(shape)
        copy.meta.pop("tensor_meta", None)
        self._parameter(parameter, copy)

    def _copied(self, argument: Any) -> Node:
        assert isinstance(argument, Node)
        return self._copies[argument]

    def _copy(self, node: Node) -> None:
        def placed(source: Node) -> Node:
            return self._copies[source] if source in self._copies else self._taken(source)

        copy = self._copies[node] = self.graph.node_copy(node, placed)
        if node not in self.sites.hidden and outputs_of(node)[0] is not None:
            self._have[(node, 0)] = {self._whole: copy}

    def _taken(self, source: Node) -> Node:
        return self._get(self.sites.maker_of(source), self._whole)

    def _parameter(self, parameter: Parameter, local: Node) -> None:
        """A parameter is gathered over data axes where it is used, and again in backward."""
        placements = self.choice.parameters[parameter.name]
        self.emit.behalf(parameter.source)
        self.emit.recomputed = parameter.trains
        value = local
        for axis in reversed(range(len(placements))):
            place = placements[axis]
            if self.mesh.is_data(axis) and isinstance(place, Shard) and self.mesh.sizes[axis] > 1:
                step = Step("all_gather", axis, place, REPLICATE)
                value = self.emit.finish(step, self.emit.launch(step, value), value)
        self.emit.recomputed = False
        self._have[(parameter.source, 0)] = {self._inside(placements): value}

    def _inside(self, placements: Placements) -> Placements:
        return tuple(
            place if axis in self.mesh.tensor_axes else REPLICATE
            for axis, place in enumerate(placements)
        )

    def _step(self, node: Node, option: Option) -> None:
        sources = tensor_inputs(node)
        tensors = self.sites.inputs_of(node)
        taken = [
            self._get(tensor, placements)
            for tensor, placements in zip(tensors, option.inputs, strict=True)
        ]
        made = outputs_of(node)
        device = next(value.device for value in made if value is not None)
        self.emit.replace(
            node,
            [(tuple(s.meta["val"].shape), p) for s, p in zip(sources, option.inputs, strict=True)],
            [
                (None if value is None else tuple(value.shape), placements)
                for value, placements in zip(made, option.outputs, strict=True)
            ],
            device,
        )
        left = list(taken)

        def local(source: Node) -> Node:
            return (
                left.pop(0)
                if source.meta.get("val") is not None
                and isinstance(source.meta["val"], torch.Tensor)
                else self._copies[source]
            )

        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), local)
        rule = self.rules.get(node)
        shared = any(
            place != REPLICATE for placed in (*option.inputs, *option.outputs) for place in placed
        )
        if rule is not None and rule.localise is not None and (shared or rule.always):
            result = rule.localise(self.emit, node, args, kwargs)
        else:
            result = self.emit.call(node.target, *args, **kwargs)
        self._check(node, option, result)
        self._keep(node, option, result)

    def _check(self, node: Node, option: Option, result: Node | tuple[Node | None, ...]) -> None:
        """Whether a rank's tensors have the shapes that their placements say."""
        found: Any
        if isinstance(result, tuple):
            found = tuple(None if one is None else one.meta["val"] for one in result)
        else:
            found = result.meta["val"]
            found = found if isinstance(found, tuple | list) else (found,)
        for value, whole, placements in zip(found, outputs_of(node), option.outputs, strict=True):
            if whole is None:
                continue
            planned = local_shape(whole.shape, placements, self.mesh.sizes)
            if tuple(value.shape) != planned:
                raise PartitionError(
                    f"{node.name} ({node.target}) as {placements_text(placements)} has the shape "
                    f"{tuple(value.shape)} on a rank, not {planned}; its inputs are "
                    + "; ".join(placements_text(placed) for placed in option.inputs)
                )

    def _keep(self, node: Node, option: Option, result: Node | tuple[Node | None, ...]) -> None:
        made = outputs_of(node)
        several = isinstance(node.meta.get("val"), tuple | list)
        for index, (value, placements) in enumerate(zip(made, option.outputs, strict=True)):
            tensor = node, index
            if value is None or (several and tensor not in self._wanted):
                continue
            here = result[index] if isinstance(result, tuple) else result
            assert here is not None
            if several and not isinstance(result, tuple):
                here = self.emit.call(operator.getitem, here, index)
            self._have[tensor] = {placements: here}
            # What forward needs elsewhere starts to move now; the wait comes with the first use.
            for target in self._wanted.get(tensor, ()):
                if target not in self._have[tensor]:
                    self._move(tensor, target)

    def _find_wanted(self) -> None:
        """The placements that users in the phase of each tensor ask for."""
        for node, option in self.choice.nodes.items():
            for tensor, placements in zip(self.sites.inputs_of(node), option.inputs, strict=True):
                wanted = self._wanted.setdefault(tensor, {})
                if (node in self.sites.forward) == (tensor[0] in self.sites.forward):
                    wanted[placements] = None
        for parameter in self.sites.parameters:
            for node, position in parameter.sinks:
                tensor = self.sites.inputs_of(node)[position]
                self._wanted.setdefault(tensor, {})
        for tensor in self.sites.inputs_of(self.sites.graph.output_node()):
            self._wanted.setdefault(tensor, {})

    # -- moves ----------------------------------------------------------------------------------

    def _get(self, tensor: TensorId, placements: Placements) -> Node:
        """A tensor in a placement; it moves if nobody asked for that before."""
        have = self._have[tensor]
        if placements not in have:
            self._move(tensor, placements)
        found = have[placements]
        if isinstance(found, _Pending):
            self.emit.behalf(tensor[0])
            self._as_parameter(tensor)
            found = have[placements] = self.emit.finish(found.step, found.launched, found.before)
            self.emit.recomputed = False
        return found

    def _as_parameter(self, tensor: TensorId) -> None:
        """Parameters that were moved are not kept for backward: they move again."""
        parameter = self.sites.by_source.get(tensor[0])
        self.emit.recomputed = parameter is not None and parameter.trains

    def _move(self, tensor: TensorId, target: Placements) -> None:
        have = self._have[tensor]
        whole = outputs_of(tensor[0])[tensor[1]]
        assert whole is not None
        shape, itemsize = tuple(whole.shape), whole.element_size()
        ways = (
            (way[0], index, source, way[1])
            for index, source in enumerate(have)
            if (way := self.mover.path(shape, itemsize, source, target)) is not None
        )
        _, _, state, steps = min(ways, key=lambda way: way[:2])
        for step in steps:
            value = self._get(tensor, state)
            state = (*state[: step.axis], step.target, *state[step.axis + 1 :])
            if state in have:
                continue
            self.emit.behalf(tensor[0])
            self._as_parameter(tensor)
            launched = self.emit.launch(step, value)
            self.emit.recomputed = False
            pending = step.kind in COLLECTIVES
            have[state] = _Pending(step, launched, value) if pending else launched

    # -- the end --------------------------------------------------------------------------------

    def _output(self, node: Node) -> None:
        gradients = {
            position: parameter
            for parameter in self.sites.parameters
            for sink, position in parameter.sinks
            if sink is node
        }
        position = -1

        def result(source: Node) -> Node:
            nonlocal position
            if not isinstance(source.meta.get("val"), torch.Tensor):
                return self._copies[source]
            position += 1
            if position in gradients:
                return self._gradient(gradients[position], source)
            if source in self.sites.hidden:
                return self._copies[source]
            tensor = self.sites.maker_of(source)
            return self._like(self._get(tensor, self._whole), source)

        args = torch.fx.node.map_arg(node.args, result)
        copy = self.graph.output(args[0], type_expr=node.type)
        copy.meta = dict(node.meta)

    def _gradient(self, parameter: Parameter, source: Node) -> Node:
        """A gradient where the parameter is: averaged over data axes."""
        placements = self.choice.parameters[parameter.name]
        value = self._get(self.sites.maker_of(source), self._inside(placements))
        self.emit.behalf(source)
        for axis, place in enumerate(placements):
            if not self.mesh.is_data(axis) or self.mesh.sizes[axis] == 1:
                continue
            partial = Partial("sum")
            if isinstance(place, Shard):
                step = Step("reduce_scatter", axis, partial, place)
            else:
                step = Step("all_reduce", axis, partial, REPLICATE)
            scaled = self.emit.call(aten.div.Scalar, value, self.mesh.sizes[axis])
            value = self.emit.finish(step, self.emit.launch(step, scaled), scaled)
        return value

    def _like(self, value: Node, source: Node) -> Node:
        """With the strides that the one-device graph gives an output."""
        found, wanted = value.meta["val"], source.meta["val"]
        if found.stride() == wanted.stride():
            return value
        empty = self.emit.call(
            aten.empty_strided.default,
            list(wanted.shape),
            list(wanted.stride()),
            dtype=wanted.dtype,
            device=wanted.device,
        )
        return self.emit.call(aten.copy.default, empty, value)


def _mode_of(graph: Graph) -> FakeTensorMode:
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()
