"""Planning a model on a mesh, offline: traced on fake tensors, decided by the cost model."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from deepcompile.cache_dir import plans_folder
from deepcompile.cost.links import Link
from deepcompile.cost.rates import Rates, rates_of
from deepcompile.errors import PartitionError, nearest
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.origins import origin_of
from deepcompile.ir.placements import (
    REPLICATE,
    Partial,
    Placements,
    Shard,
    local_numel,
    parse_placements,
    placements_text,
)
from deepcompile.options import Options, parse_size
from deepcompile.parallel.plan import Move, ParameterFacts, Plan
from deepcompile.parallel.tracing import trace
from deepcompile.passes.partition.decide import Question
from deepcompile.passes.partition.formulate import Choice, Formulation
from deepcompile.passes.partition.moves import COLLECTIVES, Step
from deepcompile.passes.partition.options import fits
from deepcompile.passes.partition.sites import Parameter, Sites, TensorId
from deepcompile.passes.partition.strategy import outputs_of
from deepcompile.pipeline.spec import parse_passes

BEFORE = "functionalise-random"
"""Passes that run on a graph before it is partitioned."""

ExampleInputs = tuple[Any, ...] | Mapping[str, Any] | None


def plan(
    model: nn.Module,
    example_inputs: ExampleInputs,
    mesh: object,
    *,
    device: str | torch.device | None = None,
    memory_limit: str | int | None = None,
    constraints: Mapping[str, Any] | None = None,
    data_axes: Iterable[str] = ("dp",),
    optimizer_bytes: float = 8.0,
) -> Plan:
    """The placements of a model's parameters that make its step quickest, and what that takes.

    Nothing is run, communicated or made: the model may be on `meta` and the mesh may be larger than
    there are processes.

    Args:
        model: written for one device.
        example_inputs: of one rank: positional as a tuple, by keyword as a dict.
        mesh: a number of ranks (of one axis `tp`), `"dp=2,tp=4"` or `{"dp": 2, "tp": 4}`.
        device: "cuda" or "cpu": what ranks compute on. The model's own where it is not on `meta`;
            then "cuda".
        memory_limit: bytes on a rank of parameters, gradients, optimizer state and of what is saved
            for backward, as `"6GiB"` or a number. None: of the first three at most 1.1 times an
            equal share on the tensor axes. `"unlimited"`: no limit.
        constraints: name of a parameter, with `*` for any part of it, to the placements that it may
            have: text as in `"R S(0)"`, one for each axis, or a list of such.
        data_axes: names of axes along which each rank has a batch of its own.
        optimizer_bytes: state for each number of a parameter; AdamW has 8.

    Raises:
        MeshError, PartitionError: with what to do.
    """
    where = Mesh.of(mesh, frozenset(data_axes))
    kind = _device_of(model, device)
    options = Options.resolve(None, None)
    graphs = trace(model, example_inputs, parse_passes(BEFORE), options)
    question = Question(
        tuple(graphs),
        where,
        _rates(kind),
        kind,
        limit=_limit(memory_limit),
        optimizer_bytes=optimizer_bytes,
        allowed=_allowed(constraints, model, graphs, where),
    )
    choice = question.answer(plans_folder(options) if options.cache else None)
    return plan_of(question.formulation, choice)


def plan_parameters(
    model: nn.Module,
    mesh: Mesh,
    example_inputs: ExampleInputs,
    *,
    memory_limit: str | int | None = None,
    constraints: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """What `parallelize` plans with; see `plan`."""
    return plan(
        model,
        example_inputs,
        mesh,
        device=device,
        memory_limit=memory_limit,
        constraints=constraints,
        data_axes=mesh.data,
    )


def _device_of(model: nn.Module, device: str | torch.device | None) -> str:
    if device is not None:
        return torch.device(device).type
    held = next((p.device.type for p in model.parameters() if not p.is_meta), None)
    return held or "cuda"


def _rates(kind: str) -> Rates:
    capability = None
    if kind == "cuda":
        capability = 90
        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            capability = 10 * major + minor
    return rates_of(kind, capability, 1)


def _limit(memory_limit: str | int | None) -> float | None:
    if memory_limit is None:
        return None
    if isinstance(memory_limit, str) and memory_limit.strip().lower() == "unlimited":
        return math.inf
    try:
        return float(parse_size(memory_limit))
    except ValueError as error:
        raise PartitionError(f"memory_limit={memory_limit!r}: {error}; or 'unlimited'") from None


def _allowed(
    constraints: Mapping[str, Any] | None,
    model: nn.Module,
    graphs: Sequence[Sites],
    mesh: Mesh,
) -> dict[str, list[Placements]]:
    """By name of a parameter that is constrained."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    first = {id(p): name for name, p in reversed(list(model.named_parameters()))}
    found: dict[str, list[Placements]] = {}
    for pattern, value in (constraints or {}).items():
        names = fnmatch.filter(shapes, pattern)
        if not names:
            close = nearest(pattern, shapes)
            raise PartitionError(
                f"the constraint on {pattern!r} is on no parameter"
                + (f"; did you mean {close!r}?" if close else "")
            )
        for name in names:
            options = [_checked(name, shapes[name], option, mesh) for option in _listed(value)]
            tied = first.get(id(model.get_parameter(name)), name)
            known = found.get(tied)
            kept = options if known is None else [o for o in known if o in options]
            if not kept:
                raise PartitionError(
                    f"constraints on {name!r} contradict each other: "
                    f"{' or '.join(map(placements_text, known or ()))} against "
                    f"{' or '.join(map(placements_text, options))}"
                )
            found[tied] = kept
    return found


def _listed(value: Any) -> list[Any]:
    several = isinstance(value, list) or (
        isinstance(value, tuple) and value and isinstance(value[0], str | tuple)
    )
    return list(value) if several else [value]


def _checked(name: str, shape: tuple[int, ...], value: Any, mesh: Mesh) -> Placements:
    try:
        placements = parse_placements(value) if isinstance(value, str) else tuple(value)
    except (TypeError, ValueError) as error:
        raise PartitionError(f"the constraint on {name!r}: {error}") from None
    if len(placements) != len(mesh.sizes):
        raise PartitionError(
            f"the constraint on {name!r}: {placements_text(placements)!r} are {len(placements)} "
            f"placements for the {len(mesh.sizes)} axes of {mesh}"
        )
    for axis, placement in enumerate(placements):
        if isinstance(placement, Partial):
            raise PartitionError(f"the constraint on {name!r}: a parameter is not {placement}")
        if isinstance(placement, Shard) and placement.dim >= len(shape):
            raise PartitionError(
                f"the constraint on {name!r}: {shape} has no dimension {placement.dim}"
            )
        if isinstance(placement, Shard) and not fits(shape, placements, mesh.sizes):
            raise PartitionError(
                f"the constraint on {name!r}: {placement} on {mesh.axes[axis][0]} does not divide "
                f"{shape} by {mesh.sizes[axis]}"
            )
    return placements


# -- what a choice comes to ------------------------------------------------------------------------


def plan_of(formulation: Formulation, choice: Choice) -> Plan:
    """A choice as a plan, with what it costs and why."""
    mesh = formulation.mesh
    moves = tuple(_moves(formulation, choice))
    communication = sum(move.seconds * move.count for move in moves)
    compute = sum(option.seconds for option in choice.nodes.values())
    parameters = {p.name: p for sites in formulation.graphs for p in sites.parameters}
    whole = (REPLICATE,) * len(mesh.sizes)
    facts = {
        name: ParameterFacts(
            tuple(parameter.tensor.shape),
            int(formulation.bytes_of(parameter, choice.parameters[name])),
            formulation.reasons.get(name, ()),
        )
        for name, parameter in parameters.items()
    }
    dropped: dict[str, tuple[str, ...]] = {}
    for sites, options in formulation.options.items():
        for node, reasons in options.dropped.items():
            label = _label(sites, node)
            dropped.setdefault(label, tuple(f"{what}: {why}" for what, why in reasons))
    solution = choice.solution
    return Plan(
        mesh,
        choice.parameters,
        facts,
        formulation.rates.name,
        {
            "total": solution.seconds,
            "bound": solution.bound,
            "compute": compute,
            "communication": communication,
            "hidden": sum(move.seconds * move.count for move in moves if move.hidden),
        },
        {
            "parameters": sum(fact.bytes for fact in facts.values()),
            "one device": int(sum(formulation.bytes_of(p, whole) for p in parameters.values())),
        },
        moves,
        dropped,
        {
            "method": solution.method,
            "gap": solution.gap,
            "colours": solution.colours,
            "seconds": sum(solution.timings.values()),
        },
    )


def _moves(formulation: Formulation, choice: Choice) -> Iterable[Move]:
    counted: dict[Move, int] = {}
    for sites in formulation.graphs:
        for tensor, target, late in _needs(formulation, sites, choice):
            for step, size, seconds in _steps(formulation, choice, sites, tensor, target):
                move = Move(
                    step.kind,
                    formulation.mesh.axes[step.axis][0],
                    "backward" if late else "forward",
                    _label(sites, tensor[0]),
                    origin_of(tensor[0]) or "",
                    size,
                    seconds,
                    hidden=tensor[0] in sites.by_source,
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
    formulation: Formulation, choice: Choice, sites: Sites, tensor: TensorId, target: Placements
) -> Iterable[tuple[Step, int, float]]:
    value = outputs_of(tensor[0])[tensor[1]]
    if value is None:
        return
    mesh = formulation.mesh
    parameter = sites.by_source.get(tensor[0])
    if parameter is not None:
        source = _on_tensor_axes(mesh, choice.parameters[parameter.name])
    elif tensor[0] in choice.nodes:
        source = choice.nodes[tensor[0]].outputs[tensor[1]]
    else:
        source = (REPLICATE,) * len(mesh.sizes)
    way = formulation.mover.path(tuple(value.shape), value.element_size(), source, target)
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
            seconds = formulation.mover.seconds(step, value.numel() * value.element_size(), state)
            yield step, size, seconds
        state = after


def _on_data_axes(formulation: Formulation, parameter: Parameter, choice: Choice) -> Iterable[Move]:
    mesh, placements = formulation.mesh, choice.parameters[parameter.name]
    size = parameter.bytes // math.prod(
        ranks
        for axis, (place, ranks) in enumerate(zip(placements, mesh.sizes, strict=True))
        if isinstance(place, Shard) and not mesh.is_data(axis)
    )
    for axis, place in enumerate(placements):
        ranks = mesh.sizes[axis]
        if not mesh.is_data(axis) or ranks == 1:
            continue
        link: Link = formulation.links[axis]
        name = mesh.axes[axis][0]
        if isinstance(place, Shard):
            gather = link.all_gather(size, ranks)
            yield Move("all_gather", name, "forward", parameter.name, "", size, gather, hidden=True)
            if parameter.trains:
                scatter = link.reduce_scatter(size, ranks)
                yield Move(
                    "all_gather", name, "backward", parameter.name, "", size, gather, hidden=True
                )
                yield Move(
                    "reduce_scatter",
                    name,
                    "backward",
                    parameter.name,
                    "",
                    size,
                    scatter,
                    hidden=True,
                )
            size //= ranks
        elif parameter.trains:
            reduce = link.all_reduce(size, ranks)
            yield Move(
                "all_reduce", name, "backward", parameter.name, "", size, reduce, hidden=True
            )


def _on_tensor_axes(mesh: Mesh, placements: Placements) -> Placements:
    return tuple(
        REPLICATE if mesh.is_data(axis) else place for axis, place in enumerate(placements)
    )


def _label(sites: Sites, node: Node) -> str:
    parameter = sites.by_source.get(node)
    return parameter.name if parameter is not None else str(getattr(node, "name", node))
