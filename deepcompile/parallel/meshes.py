"""The processes of a mesh."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from deepcompile.errors import MeshError
from deepcompile.ir.mesh import Mesh


def resolve(
    value: object, data_axes: Iterable[str], device: torch.device
) -> tuple[Mesh, DeviceMesh]:
    """A mesh as data and as process groups; makes the groups, so all ranks call it.

    A mesh of one rank needs no `init_process_group`: a process group of this process alone is made.

    Raises:
        MeshError: where the mesh does not match the processes there are.
    """
    mesh = checked(value, data_axes)
    if isinstance(value, DeviceMesh):
        return mesh, value
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return mesh, init_device_mesh(device.type, mesh.sizes, mesh_dim_names=mesh.names)


def checked(value: object, data_axes: Iterable[str]) -> Mesh:
    """The mesh that a user gives, as data; communicates nothing.

    Raises:
        MeshError: where it does not match the processes there are.
    """
    if isinstance(value, DeviceMesh):
        return _of_device_mesh(value, data_axes)
    mesh = Mesh.with_data(value, data_axes)
    if not dist.is_available():
        raise MeshError("this build of torch has no torch.distributed")
    if not dist.is_initialized():
        if mesh.ranks > 1:
            raise MeshError(
                f"mesh {mesh} has {mesh.ranks} ranks, but no process group is initialised; start "
                f"{mesh.ranks} processes (torchrun --nproc-per-node {mesh.ranks} ...) and call "
                "torch.distributed.init_process_group() before parallelize"
            )
        return mesh
    world = dist.get_world_size()
    if mesh.ranks != world:
        raise MeshError(
            f"mesh {mesh} has {mesh.ranks} ranks, but there are {world} processes; start "
            f"{mesh.ranks} of them, or give a mesh whose axes multiply to {world}"
        )
    return mesh


def _of_device_mesh(value: DeviceMesh, data_axes: Iterable[str]) -> Mesh:
    if not value.mesh_dim_names:
        raise MeshError(
            "the DeviceMesh has no names of axes; make it with "
            "init_device_mesh(..., mesh_dim_names=('dp', 'tp'))"
        )
    sizes = dict(zip(value.mesh_dim_names, value.shape, strict=True))
    mesh = Mesh.with_data(sizes, data_axes)
    world = dist.get_world_size()
    if value.mesh.flatten().tolist() != list(range(world)):
        raise MeshError(
            f"the DeviceMesh {mesh} does not hold the {world} processes in their order; give one "
            "that init_device_mesh makes for all of them, not a part of it"
        )
    return mesh
