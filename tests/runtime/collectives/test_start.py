"""`deepcompile.runtime.init` in one process; several are in tests/distributed."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

import deepcompile
from deepcompile.errors import MeshError, OptionError, RankError
from deepcompile.ir.mesh import Mesh
from deepcompile.runtime.collectives.start import _choose_device, _device_type, nearest_mesh


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield
    deepcompile.runtime.shutdown()


def test_the_package_is_cheap_and_names_are_lazy():
    program = (
        "import sys, deepcompile, deepcompile.runtime, deepcompile.runtime.collectives\n"
        "assert 'torch' not in sys.modules and 'init' in dir(deepcompile.runtime)\n"
        "assert deepcompile.runtime.init.__name__ == 'init' and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'initialise'"):
        _ = deepcompile.runtime.initialise


def test_a_script_runs_alone():
    mesh = deepcompile.runtime.init(device="cpu")
    assert (mesh.mesh_dim_names, tuple(mesh.shape), mesh.device_type) == (("dp",), (1,), "cpu")
    value = torch.ones(3)
    dist.all_reduce(value, group=mesh.get_group("dp"))
    assert value.tolist() == [1.0, 1.0, 1.0]


def test_axes_have_names_and_groups_are_reused():
    mesh = deepcompile.runtime.init({"dp": 1, "tp": 1}, device="cpu", timeout=30)
    assert mesh["tp"].size() == 1
    again = deepcompile.runtime.init(Mesh.of("tp=1"), device="cpu", timeout=timedelta(minutes=1))
    assert again.mesh_dim_names == ("tp",)
    with pytest.raises(MeshError, match="'tp=2' has 2 ranks, but the world has 1"):
        deepcompile.runtime.init(2, device="cpu")
    with pytest.raises(OptionError, match=r"of backend .*gloo.* exists already"):
        deepcompile.runtime.init(device="cpu", backend="nccl")


def test_shutdown_and_again():
    deepcompile.runtime.shutdown()
    deepcompile.runtime.init(device="cpu")
    deepcompile.runtime.shutdown()
    assert not dist.is_initialized()
    deepcompile.runtime.init(device="cpu", backend="gloo")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"mesh": "dp=2,tp=4"}, MeshError, "has 8 ranks, but the world has 1; .*'dp=1,tp=1'"),
        ({"mesh": "wide"}, MeshError, "'wide' is no mesh"),
        ({"timeout": 0}, OptionError, "timeout=0"),
        ({"timeout": "1 min"}, OptionError, "timeout='1 min'"),
        ({"timeout": float("nan")}, OptionError, "timeout=nan"),
        ({"device": "tpu"}, OptionError, "give 'cpu' or 'cuda'"),
        ({"backend": "glue"}, OptionError, "this torch has no 'glue'"),
    ],
)
def test_mistakes(arguments, error, text):
    with pytest.raises(error, match=text):
        deepcompile.runtime.init(**{"device": "cpu"} | arguments)
    assert not dist.is_initialized()


def test_environments_set_in_part(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RankError, match="but not MASTER_ADDR, MASTER_PORT; start with torchrun"):
        deepcompile.runtime.init(device="cpu")


@pytest.mark.parametrize(
    ("mesh", "ranks", "nearest"),
    [
        ("dp=2,tp=4", 4, "dp=1,tp=4"),
        ("dp=2,tp=4", 6, "dp=2,tp=3"),
        ("dp=2,tp=4", 16, "dp=4,tp=4"),
        ("dp=2,tp=4", 7, "dp=1,tp=7"),
        ("tp=3", 8, "tp=8"),
        ("dp=2,ep=3,tp=4", 12, "dp=1,ep=3,tp=4"),
    ],
)
def test_nearest_meshes(mesh, ranks, nearest):
    assert str(nearest_mesh(Mesh.of(mesh), ranks)) == nearest


@pytest.fixture
def two_devices(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize(
    ("local", "device", "backend", "number"),
    [
        (1, None, "nccl", 1),
        (3, None, "gloo", 1),
        (0, "cuda:1", "nccl", 1),
        (5, "cuda:0", "nccl", 0),
    ],
)
def test_processes_choose_a_device_by_their_number(
    two_devices, monkeypatch, local, device, backend, number
):
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert _choose_device("cuda", device, backend) == number
    assert two_devices == [number]


def test_nccl_needs_a_device_for_each_process(two_devices, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(MeshError, match=r"LOCAL_RANK=2, but this host has 2 CUDA device\(s\)"):
        _choose_device("cuda", None, "cpu:gloo,cuda:nccl")
    assert two_devices == []


def test_device_kinds_follow_what_is_there(two_devices):
    assert _device_type(None, None) == "cuda"
    assert _device_type(None, "gloo") == "cpu"
    assert _device_type("cuda", "gloo") == "cuda"
    assert _device_type("cpu", None) == "cpu"
