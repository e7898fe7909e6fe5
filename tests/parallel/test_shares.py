"""Which elements a rank has: the same as DTensor says, for every rank and kind of placement."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from deepcompile.capture.markers import MarkerSpec, share
from deepcompile.errors import PartitionError
from deepcompile.ir.placements import REPLICATE, Partial, Shard, parse_placements
from deepcompile.parallel.dtensors import mesh_axes, placements_of, torch_placements
from deepcompile.parallel.shares import checked, ranges

AXES = (("dp", 2), ("tp", 2))


@pytest.mark.parametrize("rank", range(4))
def test_equal_to_dtensor_on_every_rank(rank):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        full = torch.arange(96).reshape(24, 4)
        for text in (
            "R R", "S(0) S(0)", "S(1) S(0)", "R S(0;8,8,8)", "S(0;12,12) S(0)",
            "S(0) S(0;4,4,4)", "S(0;4x6) S(0;2x6)", "S(1;2,2) S(0;12,12)",
        ):  # fmt: skip
            placements = parse_placements(text)
            theirs = distribute_tensor(
                full, mesh, torch_placements(placements, (2, 2)), src_data_rank=None
            )
            local = theirs.to_local()
            assert placements_of(theirs) == placements
            assert torch.equal(
                share(full, MarkerSpec((24, 4), placements, mesh_axes(mesh), "w")), local
            ), text
            ours = full
            owned = ranges((24, 4), placements, (2, 2), mesh.get_coordinate())
            for dim, parts in enumerate(owned):
                ours = torch.cat([ours.narrow(dim, a, b - a) for a, b in parts], dim)
            assert torch.equal(ours, local), text
    finally:
        dist.destroy_process_group()


def test_neighbouring_ranges_are_one():
    assert ranges((8,), parse_placements("S(0;4,4) S(0)"), (2, 2), (1, 0)) == (((2, 4),),)
    assert ranges((8,), parse_placements("R S(0;4,4)"), (2, 2), (1, 1)) == (((2, 4), (6, 8)),)
    assert ranges((8,), parse_placements("R S(0;4,4)"), (2, 1), (1, 0)) == (((0, 8),),)


def test_pieces_are_of_what_axes_before_left():
    assert checked("w", (24,), (Shard(0), Shard(0, (8, 8, 8))), AXES) == (
        Shard(0),
        Shard(0, (4, 4, 4)),
    )
    assert checked("w", (24,), (REPLICATE, Shard(0, (24,))), AXES) == (REPLICATE, Shard(0))


@pytest.mark.parametrize(
    ("shape", "placements", "says"),
    [
        ((24,), (REPLICATE,), "one for each axis of the mesh: dp, tp"),
        ((24,), (Partial(), REPLICATE), "which a parameter cannot be"),
        ((24,), (REPLICATE, Shard(1)), "no dimension 1 to place on 'tp'"),
        ((), (REPLICATE, Shard(0)), "no dimension 0"),
        ((24,), (REPLICATE, Shard(0, (12, 6, 6))), "equal size"),
        ((24,), (REPLICATE, Shard(0, (6, 6))), "are not those of 'w'"),
        ((25,), (REPLICATE, Shard(0)), "25 elements, which 2 ranks .* nearest .* is 24"),
        ((2,), (Shard(0), Shard(0)), "has 1 elements, which 2 ranks of axis 'tp'"),
        ((18,), (REPLICATE, Shard(0, (6, 6, 6))), None),
        ((15,), (REPLICATE, Shard(0, (5, 5, 5))), "equally in 3 pieces"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(shape, placements, says):
    if says is None:
        assert checked("w", shape, placements, AXES) == placements
        return
    with pytest.raises(PartitionError, match=says):
        checked("w", shape, placements, AXES)
