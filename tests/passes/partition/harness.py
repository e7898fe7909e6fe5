"""Training steps of a partitioned model, all ranks in one process, against those of one device.

A model is traced with one rank's batch, planned and lowered. Then all ranks take some steps by
`simulate`, each rank's optimizer on its own shares, and one device takes them in eager, or with the
traced graph where the model draws random numbers.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from benchmarks.sharding_models import Batch, Subject
from deepcompile.capture import philox
from deepcompile.capture.aot import compile_through_aot
from deepcompile.cost.links import Link
from deepcompile.cost.rates import Rates
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE, Placements
from deepcompile.options import Options
from deepcompile.parallel.planning import BEFORE
from deepcompile.passes.partition.formulate import Choice, Formulation
from deepcompile.passes.partition.lower import Lowering
from deepcompile.passes.partition.moves import Mover
from deepcompile.passes.partition.rules import random
from deepcompile.passes.partition.simulate import gathered, scattered, simulate
from deepcompile.passes.partition.sites import Sites, plain_sites
from deepcompile.passes.partition.solve import solve
from deepcompile.passes.partition.strategy import Rule, outputs_of, tensor_inputs
from deepcompile.pipeline.manager import PassManager
from deepcompile.pipeline.spec import parse_passes

aten = torch.ops.aten

SLOW_DEVICE = Rates("slow", bandwidth=1e8, launch=0.0, flops={"f32": 1e8})
"""Computation counts most, so that even tiny models are shared out and not replicated."""

QUICK_LINK = Link("quick", alpha=0.0, beta=1e9, start=0.0)

LOSS, GRADIENT, NORM = 1e-5, 1e-4, 1e-5
"""Relative: of the loss, of gradients by norm, and of the norm of all parameters after steps."""

STEPS = 3


class Loss(nn.Module):
    """A model whose `forward` gives the loss alone, whatever the model gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        result = self.model(**batch)
        return result if isinstance(result, Tensor) else result.loss


# -- graphs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Joint:
    """The joint graph of a model on a batch.

    Attributes:
        module: with fake values.
        sites: of its graph.
        feeds: by placeholder, a parameter's or an input's name, or the value itself.
        loss: position of the loss among the outputs.
        gradients: by position among the outputs, the parameter's name.
    """

    module: GraphModule
    sites: Sites
    feeds: Mapping[Node, Any]
    loss: int
    gradients: Mapping[int, str]

    def inputs(self, parameters: Mapping[str, Tensor], batch: Batch) -> list[Any]:
        """Values of the placeholders, in order."""
        known = {**parameters, **batch, "tangent": torch.ones(())}
        return [known[feed] if isinstance(feed, str) else feed for feed in self.feeds.values()]


class _Captured(Exception):
    pass


def joint_of(model: nn.Module, batch: Batch) -> Joint:
    """Trace a model that must not break into several graphs, with real tensors."""
    found: list[Joint] = []
    names = {id(parameter): name for name, parameter in reversed([*model.named_parameters()])}
    names |= {id(value): f"input {name}" for name, value in batch.items()}
    manager = PassManager(parse_passes(BEFORE), (), Options.resolve(None, None))

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Any:
        def keep(joint: GraphModule, inner: Sequence[Any], **kwargs: Any) -> Any:
            found.append(_joint(joint, inputs, names, int(kwargs["num_fwd_outputs"])))
            raise _Captured

        return compile_through_aot(
            gm,
            inputs,
            compile_graph=_nothing_trains,
            run_joint_passes=lambda joint: manager.run(joint, "joint", "joint"),
            split_joint=keep,
            note=lambda event, **fields: None,
        )

    torch._dynamo.reset()
    try:
        torch.compile(Loss(model), backend=backend, dynamic=False, fullgraph=True)(**batch)
    finally:
        torch._dynamo.reset()
    (joint,) = found
    return joint


def _nothing_trains(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the model has no parameter that trains")


def _joint(
    module: GraphModule, inputs: Sequence[Any], names: Mapping[int, str], forward: int
) -> Joint:
    placeholders = module.graph.find_nodes(op="placeholder")
    (results,) = module.graph.output_node().args
    feeds: dict[Node, Any] = {}
    parameters: dict[Node, str] = {}
    landed: dict[Node, Node | None] = {}
    gradients: dict[int, str] = {}
    for number, node in enumerate(placeholders):
        if str(node.target).startswith("tangents"):
            feeds[node] = "tangent"
            continue
        value = inputs[number]
        name = names.get(id(value))
        if name is None:
            feeds[node] = value
        elif name.startswith("input "):
            feeds[node] = name.removeprefix("input ")
        else:
            feeds[node] = parameters[node] = name
            gradient = results[forward + number]
            landed[node] = gradient
            if gradient is not None:
                gradients[forward + number] = name
    losses = [
        position
        for position, node in enumerate(results[:forward])
        if isinstance(node, Node) and outputs_of(node)[0] is not None and not node.meta["val"].shape
    ]
    sites = plain_sites(module.graph, parameters, landed)
    return Joint(module, sites, feeds, losses[-1], gradients)


@dataclass(frozen=True, eq=False)
class Partitioned:
    """A graph on a mesh."""

    sites: Sites
    mesh: Mesh
    formulation: Formulation
    choice: Choice
    graph: Graph


def partition(
    sites: Sites,
    mesh: Mesh,
    *,
    rates: Rates = SLOW_DEVICE,
    links: Sequence[Link] | None = None,
    **options: Any,
) -> Partitioned:
    """Plan and lower."""
    links = links or (QUICK_LINK,) * len(mesh.sizes)
    formulation = Formulation([sites], mesh, rates, links, **options)
    choice = formulation.choice_of(solve(formulation.problem))
    graph = lower(sites, mesh, choice, formulation.rules, formulation.mover)
    return Partitioned(sites, mesh, formulation, choice, graph)


def lower(
    sites: Sites,
    mesh: Mesh,
    choice: Choice,
    rules: Mapping[Node, Rule | None],
    mover: Mover,
) -> Graph:
    """The graph of one rank; process groups have the names of axes."""
    return Lowering(sites, mesh, mesh.names, choice, rules, mover).run()


# -- steps -----------------------------------------------------------------------------------------


@dataclass
class Training:
    """What steps of training gave: the losses, the first step's gradients, the last parameters."""

    losses: list[Tensor] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)


def batches_of(subject: Subject, rows: int) -> list[Batch]:
    torch.manual_seed(1)
    return [subject.batch(rows) for _ in range(STEPS)]


def _adamw(parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters.values(), lr=1e-3)


def train_eager(model: nn.Module, batches: Sequence[Batch]) -> Training:
    """One device without any compiler."""
    model = copy.deepcopy(model)
    named = dict(model.named_parameters())
    optimizer, wrapped, result = _adamw(named), Loss(model), Training()
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        loss = wrapped(**batch)
        optimizer.zero_grad()
        loss.backward()
        result.losses.append(loss.detach())
        if not result.gradients:
            result.gradients = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
        optimizer.step()
    result.parameters = {name: p.detach() for name, p in named.items()}
    return result


class _OfPlace(Interpreter):
    """One device with the seeds of a place on the data axes."""

    def __init__(self, module: GraphModule, place: Sequence[int]) -> None:
        super().__init__(module)
        self._apart = torch.tensor(sum(place)) * random._APART  # wraps

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        return result + self._apart if target is philox.philox_seed else result


def train_graph(joint: Joint, model: nn.Module, batches: Sequence[Batch], mesh: Mesh) -> Training:
    """One device with the traced graph, which draws random numbers as the backend does.

    The rows of each place on the data axes have a run and a seed of their own, as in `simulate`;
    gradients are averaged.
    """
    named = {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}
    optimizer, result = _adamw(named), Training()
    first = {
        rank: [at for axis, at in enumerate(place) if mesh.is_data(axis)]
        for rank, place in enumerate(mesh.coordinates())
        if not any(at for axis, at in enumerate(place) if not mesh.is_data(axis))
    }
    for number, batch in enumerate(batches):
        rows = split_batch(batch, mesh)
        plain = {name: value.detach() for name, value in named.items()}
        runs = []
        for rank, place in first.items():
            torch.manual_seed(number)
            runs.append(_OfPlace(joint.module, place).run(*joint.inputs(plain, rows[rank])))
        outputs = [
            torch.stack(values).mean(0) if position in (joint.loss, *joint.gradients) else None
            for position, values in enumerate(zip(*runs, strict=True))
        ]
        _apply(result, joint, outputs, named, optimizer)
    result.parameters = {name: p.detach() for name, p in named.items()}
    return result


def _apply(
    result: Training,
    joint: Joint,
    outputs: Sequence[Any],
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    first = not result.losses
    result.losses.append(outputs[joint.loss])
    for position, name in joint.gradients.items():
        named[name].grad = outputs[position].clone()
        if first:
            result.gradients[name] = outputs[position].clone()
    optimizer.step()


def train_ranks(
    parts: Partitioned, joint: Joint, model: nn.Module, batches: Sequence[Batch]
) -> Training:
    """All ranks; the losses are averaged over data axes.

    Raises:
        AssertionError: ranks that must have equal values do not.
    """
    mesh, placed = parts.mesh, parts.choice.parameters
    shares = {
        name: scattered(p.detach(), placed.get(name, _whole(mesh)), mesh)
        for name, p in model.named_parameters()
    }
    ranks = range(mesh.ranks)
    named = [{n: nn.Parameter(values[r]) for n, values in shares.items()} for r in ranks]
    optimizers = [_adamw(mine) for mine in named]
    results = [Training() for _ in ranks]
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        feeds = [
            joint.inputs({n: p.detach() for n, p in named[r].items()}, mine)
            for r, mine in zip(ranks, split_batch(batch, mesh), strict=True)
        ]
        outputs = simulate(parts.graph, feeds, mesh, mesh.names, constants=joint.module)
        for r in ranks:
            _apply(results[r], joint, outputs[r], named[r], optimizers[r])
    total = Training()
    for step in range(len(batches)):
        losses = torch.stack([result.losses[step] for result in results])
        total.losses.append(losses.mean())
    whole = {
        name: parts.choice.parameters.get(name, _whole(mesh)) for name in joint.gradients.values()
    }
    for name, placements in whole.items():
        values = [result.gradients[name] for result in results]
        check_replicas(name, values, placements, mesh)
        total.gradients[name] = gathered(values, placements, mesh)
    for name in named[0]:
        values = [mine[name].detach() for mine in named]
        placements = placed.get(name, _whole(mesh))
        check_replicas(name, values, placements, mesh)
        total.parameters[name] = gathered(values, placements, mesh)
    return total


def _whole(mesh: Mesh) -> Placements:
    return (REPLICATE,) * len(mesh.sizes)


def split_batch(batch: Batch, mesh: Mesh) -> list[Batch]:
    """Each rank's rows: those of its place on the data axes."""
    found = []
    for place in mesh.coordinates():
        mine = dict(batch)
        for axis, at in enumerate(place):
            if mesh.is_data(axis):
                mine = {n: v.chunk(mesh.sizes[axis])[at] for n, v in mine.items()}
        found.append(mine)
    return found


def check_replicas(name: str, values: Sequence[Tensor], placements: Placements, mesh: Mesh) -> None:
    """Ranks of an axis on which a tensor is replicated have it alike, bit for bit."""
    for axis, placement in enumerate(placements):
        if placement != REPLICATE:
            continue
        for members in mesh.groups(axis):
            for rank in members[1:]:
                same = torch.equal(values[rank], values[members[0]])
                assert same, f"{name}: ranks {members[0]} and {rank} differ"


# -- comparing -------------------------------------------------------------------------------------


def norm(*tensors: Tensor) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors))


@dataclass(frozen=True)
class Difference:
    """How far the ranks are from one device, relative; `wrong` names what is too far."""

    loss: float
    gradient: float
    parameters: float
    wrong: tuple[str, ...] = ()


def compare(
    ranks: Training, one: Training, exact: Callable[[], Training] | None = None
) -> Difference:
    """By norm, as for models of the backend: near one device's, or about as near the exact ones.

    Args:
        ranks: of the mesh.
        one: of one device.
        exact: the same in double precision, asked for only where something is not near.
    """
    wrong = [f"no gradient: {n}" for n in sorted(one.gradients.keys() ^ ranks.gradients.keys())]
    loss = max(
        abs(float(a) - float(b)) / abs(float(b))
        for a, b in zip(ranks.losses[:1], one.losses[:1], strict=True)
    )
    scale = norm(*one.gradients.values())
    worst, suspects = 0.0, []
    for name, want in one.gradients.items():
        off = norm(ranks.gradients[name] - want) if name in ranks.gradients else math.inf
        relative = off / (norm(want) + GRADIENT * scale)
        worst = max(worst, relative)
        if not relative <= GRADIENT:
            suspects.append(name)
    if suspects and exact is not None:
        truth = exact().gradients
        suspects = [
            name
            for name in suspects
            if not norm(ranks.gradients[name] - truth[name])
            <= 2 * norm(one.gradients[name] - truth[name])
        ]
    total = norm(*one.parameters.values())
    after = abs(norm(*ranks.parameters.values()) - total) / total
    wrong += [f"gradient of {name}" for name in suspects]
    if not loss <= LOSS:
        wrong.append("loss")
    if not after <= NORM:
        wrong.append(f"parameters after {STEPS} steps")
    return Difference(loss, worst, after, tuple(wrong))


def compare_with_one_device(
    subject: Subject, mesh: str, *, rows: int = 4, **options: Any
) -> tuple[Difference, Partitioned]:
    """Train on a mesh and on one device."""
    where = Mesh.of(mesh)
    torch.manual_seed(0)
    model = subject.build().train()
    batches = batches_of(subject, rows)
    joint = joint_of(model, split_batch(batches[0], where)[0])
    parts = partition(joint.sites, where, **options)
    if subject.random:
        one, exact = train_graph(joint, model, batches, where), None
    else:
        one = train_eager(model, batches)

        def exact() -> Training:
            wide = [
                {n: v.double() if v.is_floating_point() else v for n, v in batch.items()}
                for batch in batches
            ]
            return train_eager(copy.deepcopy(model).double(), wide[:1])

    return compare(train_ranks(parts, joint, model, batches), one, exact), parts


# -- what a plan is made of ------------------------------------------------------------------------


@dataclass(frozen=True)
class Collective:
    """One in a lowered graph; bytes are of the tensor with all parts together."""

    kind: str
    axis: str
    bytes: int


_KINDS = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}


def collectives(graph: Graph, mesh: Mesh) -> Counter[Collective]:
    """Of a rank's graph in which process groups have the names of axes."""
    found: Counter[Collective] = Counter()
    for node in graph.nodes:
        target = node.target
        if getattr(target, "namespace", "") != "_c10d_functional":
            continue
        kind = _KINDS.get(str(target).split(".")[1])
        if kind is None:
            continue
        axis = str(node.args[-1])
        value = node.args[0].meta["val"]
        size = value.numel() * value.element_size()
        if kind == "all_gather":
            size *= mesh.sizes[mesh.names.index(axis)]
        found[Collective(kind, axis, size)] += 1
    return found


def wire_bytes(found: Mapping[Collective, int], mesh: Mesh) -> float:
    """That leave one rank, with rings."""
    total = 0.0
    for collective, count in found.items():
        ranks = mesh.sizes[mesh.names.index(collective.axis)]
        rounds = 2 if collective.kind == "all_reduce" else 1
        total += count * rounds * collective.bytes * (ranks - 1) / ranks
    return total


def is_heavy(node: Node) -> bool:
    """Whether a node is a product, attention, a norm, an embedding or a loss."""
    name = str(node.target)
    if "gather" in name or "amax" in name:  # of a loss, not of positions
        return tensor_inputs(node)[0].meta["val"].is_floating_point()
    return any(part in name for part in _HEAVY)


_HEAVY = (
    "aten.mm", "aten.bmm", "addmm", "linear", "convolution", "grouped_mm", "attention", "norm",
    "embedding", "softmax", "nll_loss",
)  # fmt: skip


def replicated_nodes(parts: Partitioned) -> Iterator[tuple[Node, bool]]:
    """Heavy nodes that every rank computes whole, and whether no rule is known of them."""
    for node, option in parts.choice.nodes.items():
        if is_heavy(node) and all(
            place == REPLICATE for placed in (*option.inputs, *option.outputs) for place in placed
        ):
            yield node, parts.formulation.rules.get(node) is None


def share_of_memory(parts: Partitioned) -> float:
    """Bytes of a rank's parameters, gradients and optimizer state, of one device's."""
    held = whole = 0.0
    for parameter in parts.sites.parameters:
        held += parts.formulation.bytes_of(parameter, parts.choice.parameters[parameter.name])
        whole += parts.formulation.bytes_of(parameter, _whole(parts.mesh))
    return held / whole


def describe(node: Node) -> str:
    shapes = [tuple(source.meta["val"].shape) for source in tensor_inputs(node)]
    return f"{node.target} of {', '.join(map(str, shapes))}"
