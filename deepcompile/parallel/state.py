"""Whole state dicts of a placed model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deepcompile.capture.markers import gather, share
from deepcompile.errors import PartitionError, unknown_name
from deepcompile.ir.placements import Shard
from deepcompile.parallel.dtensors import from_share, spec_of
from deepcompile.parallel.materialise import as_bytes


def full_state_dict(model: nn.Module, *, rank0_only: bool = False) -> dict[str, Any]:
    """What `model.state_dict()` was before `parallelize`: whole tensors, in the host's memory.

    All ranks call it; one parameter at a time is gathered. Tied parameters stay one tensor.

        state = deepcompile.full_state_dict(model, rank0_only=True)
        if rank == 0:
            torch.save(state, "model.pt")                        # or safetensors.torch.save_file
            model.save_pretrained("folder", state_dict=state)    # a model of transformers

    Args:
        model: placed by `parallelize`, or any other.
        rank0_only: whether ranks other than 0 get an empty dict, and keep nothing.
    """
    keep = not rank0_only or not dist.is_initialized() or dist.get_rank() == 0
    done: dict[int, Any] = {}
    found: dict[str, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in done:
            done[id(value)] = _whole(value, keep)
        found[name] = done[id(value)]
    return found if keep else {}


def _whole(value: Any, keep: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if isinstance(value, DTensor):
        value = gather(value.to_local(), spec_of(value))
        return value.cpu() if keep else None
    return value.cpu().clone() if keep else None


def load_full_state_dict(
    model: nn.Module, state: Mapping[str, Any] | None = None, *, strict: bool = True
) -> None:
    """Give a placed model the values of whole tensors, read on rank 0 only.

    All ranks call it; rank 0 gives `state` and sends it one tensor at a time. Where every rank has
    the whole dict anyway, `model.load_state_dict(state)` does the same without sending.

    Args:
        model: placed by `parallelize`, or any other.
        state: what `full_state_dict` returns; only that of rank 0 is looked at.
        strict: whether names that are missing or unknown are an error.

    Raises:
        PartitionError: for names or shapes that are not the model's, before anything was changed.
    """
    own: dict[str, Tensor] = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    several = dist.is_initialized() and dist.get_world_size() > 1
    leads = not several or dist.get_rank() == 0
    head: list[Any] = [_problem_and_names(own, state, strict) if leads else None]
    if several:
        dist.broadcast_object_list(head, src=0)
    problem, names = head[0]
    if problem:
        raise PartitionError(problem)
    done: set[int] = set()
    for name in names:
        if id(own[name]) in done:
            continue
        done.add(id(own[name]))
        _load(own[name].detach(), state[name] if leads and state else None, several)


def _problem_and_names(
    own: Mapping[str, Tensor], state: Mapping[str, Any] | None, strict: bool
) -> tuple[str, list[str]]:
    if state is None:
        return "rank 0 gave no state dict; it is the rank whose state is loaded", []
    names = [name for name in state if name in own]
    if strict:
        for name in state:
            if name not in own and isinstance(state[name], Tensor):
                return unknown_name("name in the state dict", name, own), []
        for name in own:
            if name not in state:
                return f"the state dict has no {name!r}; strict=False loads the rest", []
    for name in names:
        if tuple(state[name].shape) != tuple(own[name].shape):
            return (
                f"{name!r} has shape {tuple(state[name].shape)} in the state dict, but "
                f"{tuple(own[name].shape)} in the model"
            ), []
    return "", names


def _load(own: Any, given: Tensor | None, several: bool) -> None:
    whole = torch.empty(own.shape, dtype=own.dtype, device=own.device)
    if given is not None:
        whole.copy_(given)
    if several:
        dist.broadcast(as_bytes(whole), src=0)
    with torch.no_grad():
        if isinstance(own, DTensor):
            placed: DTensor = own
            local = placed.to_local()
            local.copy_(share(whole, spec_of(own)))
        else:
            own.copy_(whole)


def portable_state_dict(state: Any) -> Any:
    """The same nested dict, with tensors that `torch.distributed.checkpoint` can save.

    That is all of them but those sharded in pieces, which become ordinary shards here. All ranks
    call it. `place_state_like` is the way back, after loading:

        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.save(portable_state_dict(state), checkpoint_id=folder)
        ...
        loaded = portable_state_dict(state)
        dcp.load(loaded, checkpoint_id=folder)
        loaded = place_state_like(loaded, state)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
    """
    return _mapped(state, state, lambda value, _: _contiguous_shards(value))


def place_state_like(state: Any, like: Any) -> Any:
    """A nested dict with each DTensor placed as the one at the same place in `like`."""
    return _mapped(state, like, _placed_like)


def _mapped(value: Any, like: Any, change: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(item, like[key], change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(a, b, change) for a, b in zip(value, like, strict=True))
    return change(value, like) if isinstance(value, DTensor) else value


def _contiguous_shards(value: DTensor) -> DTensor:
    spec = spec_of(value)
    plain = tuple(Shard(p.dim) if isinstance(p, Shard) else p for p in spec.placements)
    return value if plain == spec.placements else _moved(value, replace(spec, placements=plain))


def _placed_like(value: DTensor, like: DTensor) -> DTensor:
    if value.placements == like.placements:
        return value
    return _moved(value, spec_of(like))


def _moved(value: DTensor, spec: Any) -> DTensor:
    whole = gather(value.to_local().detach(), spec_of(value))
    local = share(whole, spec).clone(memory_format=torch.contiguous_format)
    return from_share(local, spec, value.device_mesh)
