"""What a choice of placements comes to: as a plan, and node by node."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch.fx import Node

from deepcompile.ir.mesh import Mesh
from deepcompile.ir.origins import origin_of
from deepcompile.ir.placements import (
    REPLICATE,
    Placements,
    Shard,
    local_numel,
    placements_text,
)
from deepcompile.passes.partition.decide import Question
from deepcompile.passes.partition.formulate import (
    Choice,
    Formulation,
    bytes_made,
    saved_for_backward,
    why_not,
)
from deepcompile.passes.partition.moves import COLLECTIVES, Mover, Step
from deepcompile.passes.partition.options import FREE, Option
from deepcompile.passes.partition.plan import Move, ParameterFacts, Plan
from deepcompile.passes.partition.sites import Parameter, Sites, TensorId
from deepcompile.passes.partition.strategy import outputs_of


def plan_of(question: Question, choice: Choice) -> Plan:
    """A choice as a plan, with what it costs and why."""
    formulation, mesh = question.formulation, question.mesh
    moves = tuple(_moves(formulation, choice, question.mover(choice)))
    parameters = {p.name: p for sites in formulation.graphs for p in sites.parameters}
    takers = _takers(formulation)
    facts = {
        name: ParameterFacts(
            tuple(parameter.tensor.shape),
            int(formulation.bytes_of(parameter, choice.parameters[name])),
            refused_shards(parameter.tensor.shape, mesh),
            tuple(map(placements_text, formulation.parameter_options[name])),
            tuple(_label(formulation, sites, node) for sites, node in takers[name]),
        )
        for name, parameter in parameters.items()
    }
    solution = choice.solution
    return Plan(
        mesh,
        choice.parameters,
        facts,
        formulation.rates.name,
        {
            "total": solution.seconds,
            "bound": solution.bound,
            "compute": sum(option.seconds for option in choice.nodes.values()),
            "communication": sum(move.seconds * move.count for move in moves),
            "hidden": sum(move.seconds * move.count for move in moves if move.hidden),
        },
        _memory(formulation, choice, parameters),
        moves,
        {
            _label(formulation, sites, node): _text(node, choice.nodes.get(node))
            for nodes in takers.values()
            for sites, node in nodes
        },
        _dropped(formulation),
        {
            "method": solution.method,
            "gap": solution.gap,
            "colours": solution.colours,
            "seconds": sum(solution.timings.values()),
        },
    )


def document_of(question: Question, choice: Choice) -> dict[str, Any]:
    """For the run directory: the plan, and placements of every node as text.

    Nodes are by name: what they call, their placements, and the user's line, as in
    `aten.mm.default | R, S(1) -> S(1) | model.py:12`.
    """
    return {
        "plan": plan_of(question, choice).to_dict(),
        "nodes": {
            _label(question.formulation, sites, node): _text(node, choice.nodes[node])
            for sites in question.graphs
            for node in sites.steps()
        },
    }


def refused_shards(shape: Iterable[int], mesh: Mesh) -> tuple[str, ...]:
    """Of a parameter: what tensor axes do not divide, and the nearest number that they would."""
    return tuple(
        f"{name}: {Shard(dim)}: {why_not(extent, ranks)}"
        for axis, (name, ranks) in enumerate(mesh.axes)
        if not mesh.is_data(axis)
        for dim, extent in enumerate(shape)
        if extent % ranks
    )


def _memory(
    formulation: Formulation, choice: Choice, parameters: Mapping[str, Parameter]
) -> dict[str, int]:
    whole = (REPLICATE,) * len(formulation.mesh.sizes)
    placed = {name: choice.parameters[name] for name in parameters}
    saved = [n for sites in formulation.graphs for n in saved_for_backward(sites)]
    alone = Mesh(tuple((name, 1) for name in formulation.mesh.names))
    return {
        "parameters": sum(int(formulation.bytes_of(parameters[n], p)) for n, p in placed.items()),
        "one device": int(sum(formulation.bytes_of(p, whole) for p in parameters.values())),
        "saved": int(sum(bytes_made(n, choice.nodes[n], formulation.mesh) for n in saved)),
        "saved on one device": int(sum(bytes_made(n, choice.nodes[n], alone) for n in saved)),
    }


def _dropped(formulation: Formulation) -> dict[str, tuple[str, ...]]:
    return {
        _label(formulation, sites, node): tuple(f"{what}: {why}" for what, why in reasons)
        for sites, options in formulation.options.items()
        for node, reasons in options.dropped.items()
    }


def _takers(formulation: Formulation) -> dict[str, list[tuple[Sites, Node]]]:
    """By parameter: the operations that take it, and views of it on the way there."""
    found: dict[str, list[tuple[Sites, Node]]] = {}
    for sites in formulation.graphs:
        views = _views(sites)
        for name in views.values():
            found.setdefault(name, [])
        for node in sites.steps():
            for source, _ in dict.fromkeys(sites.inputs_of(node)):
                if source in views:
                    found[views[source]].append((sites, node))
    return found


def _views(sites: Sites) -> dict[Node, str]:
    """Nodes whose value is a parameter or a view of one, and its name."""
    found = {node: parameter.name for node, parameter in sites.by_source.items()}
    for node in sites.steps():
        if node.target in FREE:
            read = next((found[made] for made, _ in sites.inputs_of(node) if made in found), None)
            if read is not None:
                found[node] = read
    return found


def _parameter_before(sites: Sites, views: Mapping[Node, str]) -> dict[Node, str]:
    """For each node the parameter that is read last up to it, in forward or in backward."""
    last = {True: "", False: ""}
    found = dict(views)
    for node in sites.steps():
        if node in views:
            continue
        late = node not in sites.forward
        read = [views[source] for source, _ in sites.inputs_of(node) if source in views]
        last[late] = found[node] = read[0] if read else last[late]
    return found


def _text(node: Node, option: Option | None) -> str:
    if option is None:
        return f"{node.target} | | {origin_of(node) or ''}"
    taken, made = (", ".join(map(placements_text, p)) for p in (option.inputs, option.outputs))
    return f"{node.target} | {taken} -> {made} | {origin_of(node) or ''}"


def _label(formulation: Formulation, sites: Sites, node: Node) -> str:
    """A parameter's name, or a node's; of several graphs numbered."""
    parameter = sites.by_source.get(node)
    if parameter is not None:
        return parameter.name
    if len(formulation.graphs) == 1:
        return str(node.name)
    return f"{formulation.graphs.index(sites)}:{node.name}"


def _moves(formulation: Formulation, choice: Choice, mover: Mover) -> Iterable[Move]:
    mesh, counted = formulation.mesh, dict[Move, int]()
    for sites in formulation.graphs:
        views = _views(sites)
        near = _parameter_before(sites, views)
        for tensor, target, late in _needs(formulation, sites, choice):
            for step, size, seconds in _steps(mesh, mover, choice, sites, tensor, target):
                move = Move(
                    step.kind,
                    mesh.axes[step.axis][0],
                    "backward" if late else "forward",
                    _label(formulation, sites, tensor[0]),
                    origin_of(tensor[0]) or "",
                    size,
                    seconds,
                    hidden=tensor[0] in views,
                    near=near.get(tensor[0], ""),
                )
                counted[move] = counted.get(move, 0) + 1
    seen: set[str] = set()
    for sites in formulation.graphs:
        for parameter in sites.parameters:
            if parameter.name not in seen:
                seen.add(parameter.name)
                for move in _on_data_axes(formulation, parameter, choice):
                    counted[move] = counted.get(move, 0) + 1
    for move, count in counted.items():
        yield Move(**{**vars(move), "count": count})


def _needs(
    formulation: Formulation, sites: Sites, choice: Choice
) -> Iterable[tuple[TensorId, Placements, bool]]:
    """Each placement that somebody needs a tensor in, once; twice where it is not kept."""
    whole = (REPLICATE,) * len(formulation.mesh.sizes)
    needs: dict[tuple[TensorId, Placements, bool], None] = {}
    for node, option in choice.nodes.items():
        if node.graph is not sites.graph:
            continue
        for tensor, placements in zip(sites.inputs_of(node), option.inputs, strict=True):
            needs[tensor, placements, node not in sites.forward] = None
    sinks = set()
    for parameter in sites.parameters:
        inside = _on_tensor_axes(formulation.mesh, choice.parameters[parameter.name])
        for node, position in parameter.sinks:
            sinks.add((node, position))
            needs[sites.inputs_of(node)[position], inside, True] = None
    output = sites.graph.output_node()
    for position, tensor in enumerate(sites.inputs_of(output)):
        if (output, position) not in sinks and tensor[0] not in sites.hidden:
            needs[tensor, whole, tensor[0] not in sites.forward] = None
    for tensor, placements, late in needs:
        kept = tensor[0] not in sites.by_source
        if not (late and kept and (tensor, placements, False) in needs):
            yield tensor, placements, late


def _steps(
    mesh: Mesh,
    mover: Mover,
    choice: Choice,
    sites: Sites,
    tensor: TensorId,
    target: Placements,
) -> Iterable[tuple[Step, int, float]]:
    value = outputs_of(tensor[0])[tensor[1]]
    if value is None:
        return
    parameter = sites.by_source.get(tensor[0])
    if parameter is not None:
        source = _on_tensor_axes(mesh, choice.parameters[parameter.name])
    elif tensor[0] in choice.nodes:
        source = choice.nodes[tensor[0]].outputs[tensor[1]]
    else:
        source = (REPLICATE,) * len(mesh.sizes)
    way = mover.path(tuple(value.shape), value.element_size(), source, target)
    if way is None:
        return
    state = source
    for step in way[1]:
        after = (*state[: step.axis], step.target, *state[step.axis + 1 :])
        if step.kind in COLLECTIVES:
            larger = max(
                local_numel(value.numel(), placements, mesh.sizes) for placements in (state, after)
            )
            size = larger * value.element_size()
            seconds = mover.seconds(step, value.numel() * value.element_size(), state)
            yield step, size, seconds
        state = after


def _on_data_axes(formulation: Formulation, parameter: Parameter, choice: Choice) -> Iterable[Move]:
    """Gathers of a parameter before its use, and the reduction of its gradient."""
    mesh, placements = formulation.mesh, choice.parameters[parameter.name]
    size = parameter.bytes // math.prod(
        ranks
        for axis, (place, ranks) in enumerate(zip(placements, mesh.sizes, strict=True))
        if isinstance(place, Shard) and not mesh.is_data(axis)
    )

    def move(kind: str, phase: str, seconds: float) -> Move:
        name = parameter.name
        return Move(kind, axis_name, phase, name, "", size, seconds, hidden=True, near=name)

    for axis, place in enumerate(placements):
        ranks, link, axis_name = mesh.sizes[axis], formulation.links[axis], mesh.axes[axis][0]
        if not mesh.is_data(axis) or ranks == 1:
            continue
        if isinstance(place, Shard):
            gather = link.all_gather(size, ranks)
            yield move("all_gather", "forward", gather)
            if parameter.trains:
                yield move("all_gather", "backward", gather)
                yield move("reduce_scatter", "backward", link.reduce_scatter(size, ranks))
            size //= ranks
        elif parameter.trains:
            yield move("all_reduce", "backward", link.all_reduce(size, ranks))


def _on_tensor_axes(mesh: Mesh, placements: Placements) -> Placements:
    return tuple(
        place if axis in mesh.tensor_axes else REPLICATE for axis, place in enumerate(placements)
    )
