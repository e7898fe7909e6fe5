"""The process group of a script, started by torchrun or alone, and its mesh of named axes."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from deepcompile.errors import MeshError, OptionError, RankError
from deepcompile.ir.mesh import Mesh
from deepcompile.runtime.collectives.round import start_round

#: Also what compiling may take on one rank while others wait in a collective.
DEFAULT_TIMEOUT = timedelta(minutes=10)

_RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def init(
    mesh: object = None,
    *,
    backend: str | None = None,
    timeout: float | timedelta = DEFAULT_TIMEOUT,
    device: str | torch.device | None = None,
) -> DeviceMesh:
    """Start the process group and return the mesh of its ranks; the first call of a script.

    Under torchrun (or whatever else sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) this is
    collective. With none of these set the world is this one process, so that a script runs the same
    alone. A group that exists already is used as it is, and the mesh is checked against it.

    Restarts by torchrun (`--max-restarts`) work: an attempt uses no key of the store that an
    earlier one used; see `round.py`. That does not hold for a group that somebody else started.

    Args:
        mesh: `{"dp": 2, "tp": 4}`, `"dp=2,tp=4"`, a number of ranks of one axis `tp`, or a `Mesh`.
            Without one, all ranks are one axis `dp`, as in data parallelism: the only axis for
            which a model needs no change and no plan.
        backend: of torch.distributed. By default gloo on the CPU; on CUDA, NCCL for tensors there
            and gloo for those on the CPU.
        timeout: seconds or timedelta, for ranks to come and for each collective.
        device: "cpu" or "cuda". By default CUDA where there is one, but for `backend="gloo"`. This
            process then uses the device of number LOCAL_RANK.

    Raises:
        MeshError: the mesh has another number of ranks than there are, ranks ask for different
            meshes, or NCCL would have two ranks on one device.
        OptionError: a backend, a device or a timeout that is none.
        RankError: ranks that have not come in time, or an environment that is set in part.
    """
    limit = _timeout(timeout)
    kind = _device_type(device, backend)
    if dist.is_initialized():
        wanted = _mesh_for(mesh, dist.get_world_size())
        _check_reused(backend, kind)
        _choose_device(kind, device, backend or dist.get_backend())
        return _device_mesh(kind, wanted)

    backend = backend or ("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    _check_backend(backend)
    rank, size = _place()
    wanted = _mesh_for(mesh, size)
    index = _choose_device(kind, device, backend)
    store = _store(rank, size, wanted, limit)
    # With a device given, NCCL connects here, where a failure is easy to read, not in a first step.
    bound = torch.device("cuda", index) if "nccl" in backend and index is not None else None
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=limit, device_id=bound
    )
    return _device_mesh(kind, wanted)


def shutdown() -> None:
    """End the process group, if there is one. After a failed collective leave by `os._exit`.

    Groups that wait for a rank that is gone can hang in their own end; torchrun ends such workers.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def nearest_mesh(mesh: Mesh, ranks: int) -> Mesh:
    """The mesh of the same axes with this number of ranks that changes least.

    First the fewest axes that change, then the smallest ratios; of two the one that changes an
    outer axis, since inner ones decide what fits into a device.
    """

    def distance(sizes: tuple[int, ...]) -> tuple[int, float, tuple[bool, ...]]:
        changed = tuple(new != old for new, old in zip(sizes, mesh.sizes, strict=True))
        ratios = (abs(math.log(n / o)) for n, o in zip(sizes, mesh.sizes, strict=True))
        return sum(changed), round(sum(ratios), 9), changed[::-1]

    sizes = min(_factorings(ranks, len(mesh.axes)), key=distance)
    return Mesh(tuple(zip(mesh.names, sizes, strict=True)), mesh.data)


def _factorings(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    for head in itertools.product(divisors, repeat=parts - 1):
        rest, left_over = divmod(number, math.prod(head))
        if left_over == 0:
            yield (*head, rest)


def _mesh_for(value: object, ranks: int) -> Mesh:
    mesh = Mesh.of({"dp": ranks} if value is None else value)
    if mesh.ranks != ranks:
        raise MeshError(
            f"mesh {str(mesh)!r} has {mesh.ranks} ranks, but the world has {ranks}; nearest that "
            f"works: {str(nearest_mesh(mesh, ranks))!r}. Or start {mesh.ranks} processes: "
            f"torchrun --nproc-per-node={mesh.ranks}"
        )
    return mesh


def _timeout(value: float | timedelta) -> timedelta:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise OptionError(f"timeout={value!r}; give seconds or a timedelta, more than 0")
    return timedelta(seconds=seconds)


def _device_type(device: str | torch.device | None, backend: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() and backend != "gloo" else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise OptionError(f"device={device!r}; give 'cpu' or 'cuda'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device={str(device)!r}, but torch finds no CUDA device here")
    return kind


def _check_backend(backend: str) -> None:
    for name in (part.rpartition(":")[2] for part in backend.split(",")):
        if not dist.is_backend_available(name):
            raise OptionError(f"backend={backend!r}: this torch has no {name!r}; give 'gloo'")


def _check_reused(backend: str | None, kind: str) -> None:
    """The group that exists has this backend and collectives for devices of this kind."""
    config = dist.get_backend_config()
    existing = dict(part.split(":", 1) for part in config.split(","))
    wanted = {part.rpartition(":")[2] for part in backend.split(",")} if backend else set()
    if not wanted <= set(existing.values()):
        raise OptionError(
            f"backend={backend!r}, but a process group of backend {config!r} exists already; "
            "call init() before whatever starts that, or leave out backend"
        )
    if kind not in existing:
        raise OptionError(
            f"the process group that exists already (backend {config!r}) has no collectives "
            f"for {kind}; call init() before whatever starts that, or give another device"
        )


def _place() -> tuple[int, int]:
    """Rank and number of ranks."""
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return 0, 1
    missing = [name for name in _RENDEZVOUS if not os.environ.get(name)]
    if missing:
        raise RankError(
            f"{', '.join(n for n in _RENDEZVOUS if n not in missing)} in the environment, but not "
            f"{', '.join(missing)}; start with torchrun, or unset all of them to run alone"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not 0 <= rank < size:
        raise RankError(f"RANK={rank} with WORLD_SIZE={size}; ranks count from 0")
    return rank, size


def _choose_device(kind: str, device: str | torch.device | None, backend: str) -> int | None:
    """Make the device of this process the current one; its number, None on the CPU.

    With NCCL a device each; with gloo, processes of one host may share devices.
    """
    if kind != "cuda":
        return None
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    index = torch.device(device).index if device is not None else None
    if index is None:
        if local >= count and "nccl" in backend:
            raise MeshError(
                f"LOCAL_RANK={local}, but this host has {count} CUDA device(s) and NCCL needs one "
                f"for each rank; start {count} processes a host, or give backend='gloo'"
            )
        index = local % count
    torch.cuda.set_device(index)
    return index


def _store(rank: int, size: int, mesh: Mesh, limit: timedelta) -> dist.Store:
    if "RANK" not in os.environ:
        return dist.HashStore()
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=limit))
        store.set_timeout(limit)
        joining = dist.PrefixStore("deepcompile/join", store)
        name = start_round(joining, rank, size, str(mesh), limit.total_seconds())
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankError(
            f"rank {rank} has no connection to the store at {where}, which rank 0 or torchrun "
            f"keeps: {error}"
        ) from error
    return dist.PrefixStore(f"deepcompile/{name}", store)


def _device_mesh(kind: str, mesh: Mesh) -> DeviceMesh:
    return init_device_mesh(kind, mesh.sizes, mesh_dim_names=mesh.names)


def members_of(group: Any) -> tuple[int, ...]:
    """Global ranks of a process group, given as such or by the name that graphs hold."""
    if isinstance(group, str):
        group = dist.distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]
    return tuple(dist.get_process_group_ranks(group))
