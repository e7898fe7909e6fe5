"""Our placements as torch's and back: every name of DTensor that this room needs is used here.

Equal pieces of a dimension are torch's `_StridedShard`: both divide the dimension into pieces, give
a rank the same share of each piece and concatenate those, and both apply axes of the mesh in order
(compared for all ranks in the tests). Two things torch does not do with such a tensor: its
`full_tensor` is refused before torch 2.13, and `torch.distributed.checkpoint` refuses to save it.
`deepcompile.full_state_dict` and `portable_state_dict` do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Replicate as TorchReplicate
from torch.distributed.tensor import Shard as TorchShard
from torch.distributed.tensor.placement_types import Placement as TorchPlacement
from torch.distributed.tensor.placement_types import _StridedShard

from deepcompile.capture.markers import MarkerAxis, MarkerSpec
from deepcompile.errors import PartitionError
from deepcompile.ir.placements import REPLICATE, Placement, Placements, Shard


def torch_placements(placements: Placements, sizes: Sequence[int]) -> tuple[TorchPlacement, ...]:
    """What DTensor calls them."""
    return tuple(map(_torch_placement, placements, sizes))


def _torch_placement(placement: Placement, ranks: int) -> TorchPlacement:
    if not isinstance(placement, Shard):
        return TorchReplicate()
    if len(placement.pieces) > 1 and ranks > 1:
        return _StridedShard(placement.dim, split_factor=len(placement.pieces))
    return TorchShard(placement.dim)


def placements_of(tensor: DTensor) -> Placements:
    """What we call them.

    Raises:
        PartitionError: for a tensor that is partial, or sharded unevenly.
    """
    left = list(tensor.shape)
    found: list[Placement] = []
    for placement, ranks in zip(tensor.placements, tensor.device_mesh.shape, strict=True):
        if isinstance(placement, TorchReplicate):
            found.append(REPLICATE)
            continue
        count = getattr(placement, "split_factor", 1)
        dim = getattr(placement, "dim", None)
        if dim is None or left[dim] % (count * ranks):
            raise PartitionError(
                f"a tensor of shape {tuple(tensor.shape)} placed {placement} on {ranks} ranks is "
                "not divided into equal shares"
            )
        found.append(Shard(dim, (left[dim] // count,) * count if count > 1 else ()))
        left[dim] //= ranks
    return tuple(found)


def mesh_axes(mesh: DeviceMesh, data: frozenset[str] = frozenset()) -> tuple[MarkerAxis, ...]:
    """The axes of a mesh with names, as markers know them."""
    names = mesh.mesh_dim_names or tuple(f"axis{i}" for i in range(mesh.ndim))
    return tuple(
        MarkerAxis(name, size, name in data, mesh.get_group(axis).group_name if size > 1 else "")
        for axis, (name, size) in enumerate(zip(names, mesh.shape, strict=True))
    )


def spec_of(tensor: DTensor, label: str = "", data: frozenset[str] = frozenset()) -> MarkerSpec:
    """What a marker needs to know to gather a tensor."""
    axes = mesh_axes(tensor.device_mesh, data)
    return MarkerSpec(tuple(tensor.shape), placements_of(tensor), axes, label)


def from_share(local: Tensor, spec: MarkerSpec, mesh: DeviceMesh) -> DTensor:
    """The tensor of which this rank has a share; nothing is communicated."""
    strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
    return DTensor.from_local(
        local,
        mesh,
        torch_placements(spec.placements, spec.sizes),
        run_check=False,
        shape=torch.Size(spec.shape),
        stride=tuple(strides),
    )
