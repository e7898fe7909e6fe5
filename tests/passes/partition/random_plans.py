"""Training steps shared by random plans: any of them must compute what one device does."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from deepcompile.capture.aot import compile_through_aot, interpret
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE, Partial, Placements, Shard
from deepcompile.passes.functionalise_random import FunctionaliseRandom
from deepcompile.passes.partition.formulate import Choice
from deepcompile.passes.partition.lower import Lowering
from deepcompile.passes.partition.moves import Mover
from deepcompile.passes.partition.options import Option, Options, fits
from deepcompile.passes.partition.problem import Solution
from deepcompile.passes.partition.simulate import simulate
from deepcompile.passes.partition.sites import Parameter, Sites, TensorId
from deepcompile.passes.partition.strategy import outputs_of, tensor_inputs
from tests.passes.conftest import apply_pass
from tests.passes.partition.one_call import RATES, gathered, mover_of, scattered


def joint_graphs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Of each piece that the model breaks into, with the values of its inputs."""
    found: list[GraphModule] = []

    def backend(module: GraphModule, inputs: Any) -> Any:
        def keep(joint: GraphModule) -> GraphModule:
            found.append(apply_pass(FunctionaliseRandom(), joint, "joint").after)
            return joint

        return compile_through_aot(
            module,
            inputs,
            compile_graph=lambda graph, given, *, kind, static_input_idxs: interpret(graph),
            run_joint_passes=keep,
        )

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(*args, **kwargs)
    return found


def inputs_like(joint: GraphModule, high: int) -> dict[Node, Any]:
    """Values for the placeholders; whole numbers are below `high`."""
    found = {}
    for node in joint.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            found[node] = value
        elif value.dtype == torch.bool:
            found[node] = torch.rand(value.shape) > 0.5
        elif value.is_floating_point():
            found[node] = (torch.randn(value.shape) * 0.3).to(value.dtype)
        else:
            found[node] = torch.randint(0, high, value.shape).to(value.dtype)
    return found


def sites_of(joint: GraphModule) -> Sites:
    """Inputs that have a gradient count as parameters: both lie anywhere."""
    inputs = joint.graph.find_nodes(op="placeholder")
    primals = [node for node in inputs if not str(node.target).startswith("tangents")]
    output = joint.graph.output_node()
    outputs = list(output.args[0])  # type: ignore[arg-type]
    first = len(outputs) - len(primals)
    place, parameters = -1, []
    for index, result in enumerate(outputs):
        if not isinstance(result, Node) or not isinstance(result.meta.get("val"), Tensor):
            continue
        place += 1
        if index >= first:
            source = primals[index - first]
            parameters.append(Parameter(source.name, source, ((output, place),)))
    return Sites(joint.graph, tuple(parameters))


class RandomPlan:
    """A choice of placements by a seed, of those that a graph can be lowered with."""

    def __init__(self, sites: Sites, mesh: Mesh, seed: int, shared: float = 0.8) -> None:
        self.sites, self.mesh = sites, mesh
        self.random = random.Random(seed)
        self.shared = shared
        self.options = Options(sites, mesh, RATES)
        self.mover: Mover = mover_of(mesh)
        self.whole = (REPLICATE,) * len(mesh.sizes)
        self._made: dict[TensorId, Placements] = {}
        self.choice = self._choose()

    def _choose(self) -> Choice:
        nodes: dict[Node, Option] = {}
        parameters = {p.name: self._parameter(p) for p in self.sites.parameters}
        for parameter in self.sites.parameters:
            self._made[(parameter.source, 0)] = parameters[parameter.name]
        for node in self.sites.givens():
            self._made[(node, 0)] = self.whole
        for node in self.sites.steps():
            nodes[node] = option = self._option(node)
            for index, placements in enumerate(option.outputs):
                self._made[(node, index)] = placements
        for tensor, placements in self._made.items():
            self._teach(tensor, [placements, self.whole])
        for parameter in self.sites.parameters:
            for sink, position in parameter.sinks:
                tensor = self.sites.inputs_of(sink)[position]
                self._teach(tensor, [parameters[parameter.name]])
        return Choice(nodes, parameters, Solution((), 0.0, 0.0))

    def _teach(self, tensor: TensorId, placements: Sequence[Placements]) -> None:
        value = outputs_of(tensor[0])[tensor[1]]
        if value is not None:
            self.mover.teach(tuple(value.shape), placements)

    def _parameter(self, parameter: Parameter) -> Placements:
        shape = tuple(parameter.tensor.shape)
        places = [REPLICATE, *self.options.candidates.all_of((parameter.source, 0))]
        for _ in range(20):
            placed = tuple(self.random.choice(places) for _ in self.mesh.sizes)
            if fits(shape, placed, self.mesh.sizes) and all(
                not isinstance(place, Shard)
                or all(part % ranks == 0 for part in (place.pieces or (shape[place.dim],)))
                for place, ranks in zip(placed, self.mesh.sizes, strict=True)
            ):
                return placed
        return self.whole

    def _option(self, node: Node) -> Option:
        options = list(self.options.of(node))
        self.random.shuffle(options)
        if self.random.random() < self.shared:
            options.sort(key=lambda option: not _shares(option))
        for option in options:
            if self._reachable(node, option):
                return option
        raise AssertionError(f"no option of {node.format_node()} can be reached")

    def _reachable(self, node: Node, option: Option) -> bool:
        """Partial tensors come about by steps that not every placement has."""
        for tensor, placements in zip(self.sites.inputs_of(node), option.inputs, strict=True):
            value = outputs_of(tensor[0])[tensor[1]]
            assert value is not None
            shape = tuple(value.shape)
            self.mover.teach(shape, [placements, self._made[tensor], self.whole])
            if self.mover.path(shape, value.element_size(), self._made[tensor], placements) is None:
                return False
        return True

    def results(self, joint: GraphModule, values: Mapping[Node, Any], seed: int) -> list[Any]:
        """What every rank returns for inputs that are given whole."""
        rules = self.options.candidates.rules
        names = self.mesh.names
        local = Lowering(self.sites, self.mesh, names, self.choice, rules, self.mover).run()
        placed = {p.source: self.choice.parameters[p.name] for p in self.sites.parameters}
        feeds: list[list[Any]] = [[] for _ in range(self.mesh.ranks)]
        for node, value in values.items():
            parts = [value] * self.mesh.ranks
            if isinstance(value, Tensor):
                parts = scattered(value, placed.get(node, self.whole), self.mesh)
            for feed, part in zip(feeds, parts, strict=True):
                feed.append(part)
        torch.manual_seed(seed)
        return simulate(local, feeds, self.mesh, names, constants=joint)


def _shares(option: Option) -> bool:
    places = [place for placed in (*option.inputs, *option.outputs) for place in placed]
    return any(isinstance(place, Shard | Partial) for place in places)


def compare(
    joint: GraphModule,
    values: Mapping[Node, Any],
    plan: RandomPlan,
    seed: int = 7,
    exactly: Tensor | None = None,
) -> list[str]:
    """What differs between one device and the ranks of a plan; `exactly` is to the bit.

    Each rank draws a seed of its own from the generator.
    """
    torch.manual_seed(seed)
    expected = pytree.tree_leaves(
        Interpreter(joint).run(*[_copied(value) for value in values.values()]),
        is_leaf=lambda leaf: leaf is None,
    )
    results = plan.results(joint, values, seed)
    found = _differences(joint, plan, expected, results)
    if exactly is not None:
        position = next(i for i, value in enumerate(expected) if value.shape == exactly.shape)
        if not all(torch.equal(result[position], exactly) for result in results):
            found.append("random numbers differ")
    return found


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _differences(
    joint: GraphModule, plan: RandomPlan, expected: Sequence[Any], results: Sequence[Any]
) -> list[str]:
    output = joint.graph.output_node()
    sinks = {
        position: plan.choice.parameters[parameter.name]
        for parameter in plan.sites.parameters
        for sink, position in parameter.sinks
        if sink is output
    }
    found, position = [], -1
    tensors = [value for value in expected if isinstance(value, Tensor)]
    scale = max(float(v.double().norm()) for v in tensors if v.is_floating_point())
    for index, whole in enumerate(expected):
        if not isinstance(whole, Tensor):
            continue
        position += 1
        placements = sinks.get(position, plan.whole)
        here = gathered([result[index] for result in results], placements, plan.mesh, 1e-4)
        name = tensor_inputs(output)[position].name
        if isinstance(here, str):
            found.append(f"{name} {here}")
            continue
        # Gradients of a key's bias, for one, are nothing but what rounding leaves.
        size = max(float(whole.double().norm()), 1e-3 * scale)
        away = (here.double() - whole.double()).norm() / size
        if not away < 1e-4:
            found.append(f"{name} {tuple(whole.shape)} is {float(away):.1e} away")
    return found
