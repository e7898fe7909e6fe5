"""`deepcompile.parallelize`: a model of one device becomes one that the ranks of a mesh share."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from deepcompile import __version__
from deepcompile.errors import (
    DeepCompileError,
    MeshError,
    PartitionError,
    RankError,
    nearest,
    unknown_name,
)
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE, Placements, parse_placements, placements_text
from deepcompile.options import Options
from deepcompile.parallel import meshes, shares
from deepcompile.parallel.dtensors import mesh_axes
from deepcompile.parallel.materialise import (
    Entry,
    Init,
    materialise,
    parameters,
    refuse_what_a_checkpoint_lacks,
)
from deepcompile.parallel.modules import refuse_what_cannot_be_placed
from deepcompile.parallel.plan_check import refuse_plan_of_another_model
from deepcompile.parallel.safetensors_files import Checkpoint
from deepcompile.passes.partition.plan import Plan
from deepcompile.pipeline.rundir import process_run
from deepcompile.pipeline.spec import Pipeline


def parallelize(
    model: nn.Module,
    mesh: object,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    memory_limit: str | int | None = None,
    constraints: Mapping[str, Any] | None = None,
    plan: Any = None,
    data_axes: Iterable[str] = ("dp",),
    device: torch.device | str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    init: Init | None = None,
) -> nn.Module:
    """Place a model's parameters on a mesh; the same model, to train and to compile as before.

    Each parameter becomes a DTensor of which this rank holds its share, under its old name, so that
    optimizers, `clip_grad_norm_`, state dicts and `torch.distributed.checkpoint` work unchanged.
    Modules still read whole tensors: without compiling, they gather them, and their gradients are
    averaged over data axes and cut to the parameter's share. `torch.compile(model,
    backend="deepep")` runs a local program in place of that.

    Ranks along a data axis have a batch each; all others are given equal inputs and get equal
    outputs. All ranks call `parallelize`. Values are those of rank 0. Make the optimizer after it.

    Args:
        model: on any device, or on `meta`: then its parameters are made share by share, from
            `checkpoint` or `init`, and never held whole (with `init="model"` those of one module
            at a time are).
        mesh: a number of ranks (of one axis `tp`), `"dp=2,tp=4"`, `{"dp": 2, "tp": 4}`, or a
            `DeviceMesh` with names. It has as many ranks as there are processes.
        example_inputs: positional inputs as a tuple, or keyword inputs as a dict, for planning.
        memory_limit: for planning, as `deepcompile.plan` takes it.
        constraints: for planning: name of a parameter, `*` for any part of it, to its placements.
        plan: in place of planning: a `deepcompile.Plan`, the path of a file of one (which rank 0
            reads), or a mapping of parameter names to placements, or an object that has one as
            `parameters`. Placements are those of `deepcompile.ir.placements` for each axis of the
            mesh, or their text, as in `"R S(0)"`. A `Plan` is for one mesh and names all
            parameters of the model; what a mapping does not name is replicated.
        data_axes: names of axes along which each rank has a batch of its own.
        device: where parameters are put; where the model is, or for one on `meta` the current GPU
            if there is one.
        checkpoint: a safetensors file, a folder of them or their index: the values of parameters
            and buffers. Only this rank's shares are read.
        init: how to make what is on `meta` and in no checkpoint. `"model"`, the default without a
            checkpoint, calls `_init_weights(module)` of the model (as `transformers` has it) or
            each module's `reset_parameters()`, with the random numbers of rank 0, children first.
            Or a function `(name, shape, dtype) -> tensor`, called on all ranks, for each whole
            parameter and buffer.

    Raises:
        MeshError: the mesh does not match the processes.
        PartitionError: the model cannot be placed so; the text names the parameter.
        RankError: the model is another one on another rank.
    """
    _checked_by_all(lambda: _check_arguments(model, mesh, constraints, data_axes, device, init))
    where = _device(model, device)
    ranks, groups = meshes.resolve(mesh, data_axes, where)
    entries = parameters(model)
    agreed = _decided_on_rank_0(
        lambda: _decide(
            model, ranks, example_inputs, entries, plan, memory_limit, constraints, where
        ),
        entries,
    )
    files = _opened(model, checkpoint, init)
    axes = mesh_axes(groups, ranks.data)
    materialise(model, agreed, groups, axes, where, files, init)
    return model


def _check_arguments(
    model: object,
    mesh: object,
    constraints: Mapping[str, Any] | None,
    data_axes: Iterable[str],
    device: torch.device | str | None,
    init: Init | None,
) -> Mesh:
    """All that a rank finds wrong by itself; the mesh."""
    if not isinstance(model, nn.Module):
        raise PartitionError(f"parallelize takes a torch.nn.Module, not {type(model).__name__}")
    if init is not None and init != "model" and not callable(init):
        raise PartitionError(f"init is 'model' or a function of (name, shape, dtype), not {init!r}")
    refuse_what_cannot_be_placed(model)
    _device(model, device)
    _check_names(constraints, parameters(model))
    return meshes.checked(mesh, data_axes)


def _checked_by_all(check: Callable[[], Mesh]) -> None:
    """An error of any rank is raised on all, so that none waits for it; meshes are the same.

    Raises:
        MeshError: also for ranks that give different meshes.
    """
    error: DeepCompileError | None = None
    mesh: Mesh | None = None
    try:
        mesh = check()
    except DeepCompileError as raised:
        error = raised
    several = dist.is_available() and dist.is_initialized() and dist.get_backend() != "fake"
    if several and dist.get_world_size() > 1:
        axes = mesh and f"{mesh} (data axes: {', '.join(sorted(mesh.data)) or 'none'})"
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (error and str(error), axes))
        for rank, (text, theirs) in enumerate(found):
            if text is not None and error is None:
                error = PartitionError(f"rank {rank} could not place the model: {text}")
            elif text is None and theirs != found[0][1] and error is None and found[0][0] is None:
                error = MeshError(
                    f"rank {rank} gives parallelize another mesh than rank 0: {theirs}, not "
                    f"{found[0][1]}"
                )
    if error is not None:
        raise error


def _decide(
    model: nn.Module,
    mesh: Mesh,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None,
    entries: list[Entry],
    plan: Any,
    memory_limit: str | int | None,
    constraints: Mapping[str, Any] | None,
    device: torch.device,
) -> dict[str, Placements]:
    """Of each parameter, by its first name."""
    if plan is None:
        plan = _planned(model, mesh, example_inputs, memory_limit, constraints, device)
    elif isinstance(plan, str | PathLike):
        plan = Plan.load(plan)
    if isinstance(plan, Plan):
        refuse_plan_of_another_model(plan, mesh, {tuple(e.names): e.shape for e in entries})
        _record(plan)
    given = getattr(plan, "parameters", plan)
    if not isinstance(given, Mapping):
        raise PartitionError(
            "a plan is a deepcompile.Plan, the path of its file, or a mapping of parameter names "
            f"to placements, not {type(plan).__name__}"
        )
    known = [name for entry in entries for name in entry.names]
    for name in given:
        if name not in known:
            raise PartitionError(unknown_name("parameter in the plan", str(name), known))
    return {entry.names[0]: _placements(entry, given, mesh) for entry in entries}


def _record(plan: Plan) -> None:
    """Keep the plan of a whole model in the run directory of the environment."""
    options = Options.resolve()
    if options.run_dir is not None:
        run = process_run(
            options.run_dir,
            options=options.to_dict(),
            pipeline=str(Pipeline.of(options)),
            versions={"deepcompile": __version__, "torch": torch.__version__},
        )
        run.sharding("model", {"graph": "model", "kind": "model", "plan": plan.to_dict()})


def _planned(
    model: nn.Module,
    mesh: Mesh,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None,
    memory_limit: str | int | None,
    constraints: Mapping[str, Any] | None,
    device: torch.device,
) -> Any:
    from deepcompile.parallel.planning import plan_parameters

    return plan_parameters(
        model,
        mesh,
        example_inputs,
        memory_limit=memory_limit,
        constraints=constraints,
        device=device,
    )


def _placements(entry: Entry, given: Mapping[str, Any], mesh: Mesh) -> Placements:
    found = {}
    for name in entry.names:
        if name in given:
            value = given[name]
            parsed = _parsed(name, value)
            found[name] = shares.checked(name, entry.shape, parsed, mesh.axes)
    if len(set(found.values())) > 1:
        differing = " and ".join(f"{n!r} {placements_text(p)}" for n, p in found.items())
        raise PartitionError(f"a tied parameter has one place, but the plan says {differing}")
    return next(iter(found.values()), (REPLICATE,) * len(mesh.axes))


def _parsed(name: str, value: Any) -> Placements:
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, Iterable) else (value,)
    try:
        return parse_placements(value)
    except ValueError as error:
        raise PartitionError(f"{name!r}: {error}") from None


def _check_names(constraints: Mapping[str, Any] | None, entries: list[Entry]) -> None:
    known = [name for entry in entries for name in entry.names]
    for pattern in constraints or ():
        if not fnmatch.filter(known, pattern):
            close = nearest(pattern, known)
            raise PartitionError(
                f"the constraint on {pattern!r} is on no parameter"
                + (f"; did you mean {close!r}?" if close else "")
            )


def _decided_on_rank_0(decide: Any, entries: list[Entry]) -> dict[str, Placements]:
    """What rank 0 decides, on all ranks; they have compared their parameters first.

    An error of rank 0 is raised on all, so that none is left waiting.
    """
    if dist.get_world_size() == 1:
        return decide()
    facts = [(e.names, e.shape, str(e.dtype), e.is_meta) for e in entries]
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, facts)
    for rank, other in enumerate(of_all):
        if other != of_all[0]:
            raise RankError(f"rank {rank} has another model than rank 0: {_first(of_all, rank)}")
    answer: list[Any] = [None, None]
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            texts = {name: placements_text(value) for name, value in decide().items()}
            answer = [texts, None]
        except Exception as raised:
            error = raised
            answer = [None, f"{type(raised).__name__}: {raised}"]
    dist.broadcast_object_list(answer, src=0)
    if error is not None:
        raise error
    if answer[1] is not None:
        raise PartitionError(f"rank 0 could not place the model: {answer[1]}")
    return {name: parse_placements(text) for name, text in answer[0].items()}


def _opened(
    model: nn.Module, path: str | PathLike[str] | None, init: Init | None
) -> Checkpoint | None:
    """The checkpoint; an error of any rank, as where a file is missing, is raised on all."""
    if path is None:
        return None
    found: Checkpoint | None = None
    error: Exception | None = None
    try:
        found = Checkpoint(path)
        if init is None:
            refuse_what_a_checkpoint_lacks(model, found)
    except Exception as raised:
        error = raised
    errors: list[Any] = [error and str(error)] * dist.get_world_size()
    if len(errors) > 1:
        dist.all_gather_object(errors, error and str(error))
    if error is not None:
        raise error
    for rank, text in enumerate(errors):
        if text is not None:
            raise PartitionError(f"rank {rank} cannot read the checkpoint: {text}")
    return found


def _first(of_all: list[Any], rank: int) -> str:
    for ours, theirs in zip(of_all[0], of_all[rank], strict=False):
        if ours != theirs:
            return f"{ours[0][0]} {ours[1:]} on rank 0 is {theirs[0][0]} {theirs[1:]}"
    return f"{len(of_all[0])} parameters on rank 0 are {len(of_all[rank])}"


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        try:
            chosen = torch.device(device)
        except RuntimeError:
            raise PartitionError(f"{device!r} is no device of torch's") from None
    else:
        held = [t.device for t in [*model.parameters(), *model.buffers()] if not t.is_meta]
        if held:
            return held[0]
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return chosen
