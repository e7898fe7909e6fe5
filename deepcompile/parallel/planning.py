"""Planning a model on a mesh, offline: traced on fake tensors, decided by the cost model."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from deepcompile.cache_dir import plans_folder
from deepcompile.cost.rates import Rates, rates_of
from deepcompile.errors import PartitionError, nearest
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import (
    REPLICATE,
    Placements,
    parse_placements,
    placements_text,
)
from deepcompile.options import Options, parse_size
from deepcompile.parallel import shares
from deepcompile.parallel.tracing import trace
from deepcompile.passes.partition.decide import Question
from deepcompile.passes.partition.options import fits
from deepcompile.passes.partition.plan import ParameterFacts, Plan
from deepcompile.passes.partition.report import plan_of
from deepcompile.passes.partition.sites import Sites
from deepcompile.pipeline.spec import parse_passes

BEFORE = "functionalise-random"
"""Passes that run on a graph before it is partitioned."""

_OF_PARAMETERS = ("parameters", "one device")

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
    where = Mesh.with_data(mesh, data_axes)
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
    return _with_unread(plan_of(question, choice), model)


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


def _with_unread(plan: Plan, model: nn.Module) -> Plan:
    """A plan of all parameters, in the model's order; those that no graph reads are replicated."""
    placed: dict[str, Placements] = {}
    facts: dict[str, ParameterFacts] = {}
    held = 0
    for name, parameter in model.named_parameters():
        if name in plan.parameters:
            placed[name], facts[name] = plan.parameters[name], plan.facts[name]
            continue
        size = parameter.numel() * parameter.element_size()
        placed[name] = (REPLICATE,) * len(plan.mesh.sizes)
        facts[name] = ParameterFacts(tuple(parameter.shape), size, ("no graph reads it",))
        held += size
    memory = {name: size + held * (name in _OF_PARAMETERS) for name, size in plan.memory.items()}
    return replace(plan, parameters=placed, facts=facts, memory=memory)


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
    try:
        shares.checked(name, shape, placements, mesh.axes)
    except PartitionError as error:
        raise PartitionError(f"constraints: {error}") from None
    if not fits(shape, placements, mesh.sizes):
        raise PartitionError(
            f"constraints: {name!r} is placed {placements_text(placements)}, which shards one "
            "dimension by several axes of the mesh in pieces; shard another, or without pieces"
        )
    return placements
