"""Marker ops: their spec as text, their shapes, and what ranks of a mesh get from each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh

from deepcompile.capture import markers
from deepcompile.capture.markers import MarkerAxis, MarkerSpec
from deepcompile.ir.placements import parse_placements
from deepcompile.parallel.dtensors import mesh_axes
from deepcompile.parallel.shares import ranges

DP_TP = (MarkerAxis("dp", 2, True, "3"), MarkerAxis("tp", 4, False, "a_1"))


def spec(shape, text, axes, label="w"):
    return MarkerSpec(tuple(shape), parse_placements(text), axes, label)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (spec((64, 16), "R S(0;32,32)", DP_TP), "64,16 | R S(0;32,32) | dp*=2@3,tp=4@a_1 | w"),
        (
            spec((), "R", (MarkerAxis("tp", 1, False, ""),), "a | b.c"),
            " | R | tp=1@- | a | b.c",
        ),
    ],
)
def test_spec_parses_back_from_its_text(made, text):
    assert str(made) == text
    assert MarkerSpec.parse(text) == made


@pytest.mark.parametrize("text", ["", "1,2 | R | tp=1@-", "4 | R | tp | w", "4 | Q | tp=1@- | w"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"is no|are no"):
        MarkerSpec.parse(text)


def test_fake_results_have_the_shapes_and_refuse_others():
    text = str(spec((64, 16), "S(1) S(0)", DP_TP))
    with FakeTensorMode():
        assert markers.unshard(torch.empty(16, 8), text).shape == (64, 16)
        assert markers.reshard_grad(torch.empty(64, 16), text).shape == (16, 8)
        with pytest.raises(ValueError, match="share of w has shape"):
            markers.unshard(torch.empty(64, 16), text)


def test_one_rank_needs_no_process_group_and_shares_no_memory():
    text = str(spec((4, 2), "S(0)", (MarkerAxis("tp", 1, False, ""),)))
    local = torch.randn(4, 2, requires_grad=True)
    full = markers.unshard(local, text)
    assert full.data_ptr() != local.data_ptr()
    (3 * full).sum().backward()
    assert torch.equal(local.grad, torch.full((4, 2), 3.0))
    torch.library.opcheck(markers.unshard, (local, text))
    torch.library.opcheck(markers.reshard_grad, (local.detach(), text))


def test_a_second_derivative_is_refused():
    text = str(spec((4,), "R", (MarkerAxis("tp", 1, False, ""),)))
    local = torch.randn(4, requires_grad=True)
    (first,) = torch.autograd.grad(
        markers.unshard(local, text).pow(2).sum(), local, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="second derivative by w"):
        first.sum().backward()


# All four ranks of a mesh, in this process.

PLACEMENTS = [
    "R R",
    "R S(0)",
    "S(0) S(0)",
    "S(1) S(0)",
    "R S(0;8,8,8)",
    "S(0;12,12) S(0)",
    "S(0) S(0;4,4,4)",
    "S(0;6x4) S(0;2x6)",
]  # fmt: skip
PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[torch.distributed.device_mesh.DeviceMesh]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dist.destroy_process_group()


def local_of(full: torch.Tensor, of: MarkerSpec, place: tuple[int, int]) -> torch.Tensor:
    for dim, parts in enumerate(ranges(of.shape, of.placements, of.sizes, place)):
        full = torch.cat([full.narrow(dim, a, b - a) for a, b in parts], dim)
    return full


@pytest.mark.parametrize("text", PLACEMENTS)
def test_gathered_shares_are_the_whole(mesh, text):
    from torch.distributed._local_tensor import LocalTensor, LocalTensorMode

    full = torch.arange(48.0).reshape(24, 2)
    made = spec(full.shape, text, mesh_axes(mesh, frozenset({"dp"})))
    with LocalTensorMode(4):
        shares = {rank: local_of(full, made, place) for rank, place in enumerate(PLACES)}
        whole = markers.gather(LocalTensor(shares), made)
    assert all(torch.equal(value, full) for value in whole._local_tensors.values())


@pytest.mark.parametrize("text", PLACEMENTS)
def test_gradients_are_means_over_data_axes(mesh, text):
    """Both axes are data axes here, so that no rank takes its share of equal gradients alone."""
    from torch.distributed._local_tensor import LocalTensor, LocalTensorMode

    grads = {rank: torch.randn(24, 2, dtype=torch.float64) for rank in range(4)}
    made = spec((24, 2), text, mesh_axes(mesh, frozenset({"dp", "tp"})))
    with LocalTensorMode(4):
        got = markers._reduced_share(LocalTensor(dict(grads)), made)
    mean = sum(grads.values()) / 4
    for rank, place in enumerate(PLACES):
        torch.testing.assert_close(got._local_tensors[rank], local_of(mean, made, place))
