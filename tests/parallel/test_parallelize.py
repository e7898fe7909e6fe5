"""`parallelize`: meshes, plans and their mistakes; values from files and initialisers."""

from __future__ import annotations

import json
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import deepcompile
from deepcompile.errors import MeshError, PartitionError
from deepcompile.parallel import api, safetensors_files

pytestmark = pytest.mark.usefixtures("alone")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4, bias=False))


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return deepcompile.full_state_dict(model)


def check_equal(got: nn.Module, expected: nn.Module) -> None:
    theirs = expected.state_dict()
    ours = whole(got)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# Meshes.


@pytest.mark.parametrize("mesh", [1, "1", "tp=1", "dp=1,tp=1", {"dp": 1, "tp": 1}])
def test_a_mesh_of_one_rank_needs_no_launcher(mesh):
    model = deepcompile.parallelize(net(), mesh, plan={})
    assert model(torch.randn(3, 4)).shape == (3, 4)
    assert dist.get_world_size() == 1


def test_a_device_mesh_is_taken_as_it_is():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    model = deepcompile.parallelize(net(), mesh, plan={"0.weight": "R S(0)"})
    assert next(model.parameters()).device_mesh is mesh
    with pytest.raises(MeshError, match="no names of axes"):
        deepcompile.parallelize(net(), init_device_mesh("cpu", (1,)), plan={})


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        (2, "tp=2 has 2 ranks, but no process group .*torchrun --nproc-per-node"),
        ("rows by columns", "is no mesh"),
        ("tp=0", "needs at least 1"),
    ],
)
def test_a_mesh_without_processes(mesh, says):
    with pytest.raises(MeshError, match=says):
        deepcompile.parallelize(net(), mesh, plan={})


def test_a_mesh_of_another_number_of_ranks():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    with pytest.raises(MeshError, match="dp=2,tp=4 has 8 ranks, but there are 4 processes"):
        deepcompile.parallelize(net(), "dp=2,tp=4", plan={})
    part = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
    with pytest.raises(MeshError, match="not a part of it"):
        deepcompile.parallelize(net(), part, plan={})


# Plans.


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (
            {"0.wieght": "R R"},
            r"unknown parameter in the plan '0\.wieght'; did you mean '0\.weight'",
        ),
        ({"0.weight": "R"}, r"needs one for each axis of the mesh: dp, tp"),
        ({"0.weight": "R Q"}, "'Q' is no placement"),
        ({"0.weight": "R S(2)"}, "no dimension 2"),
        ({"0.weight": (Replicate(), Shard(0))}, r"give placements of deepcompile\.ir"),
        ({"0.weight": 0}, "needs one for each axis"),
        (3, "a mapping of parameter names"),
    ],
)
def test_plans_that_are_none(plan, says):
    model = net()
    with pytest.raises(PartitionError, match=says):
        deepcompile.parallelize(model, "dp=1,tp=1", plan=plan)
    assert type(model[0]) is nn.Linear  # nothing has changed


def test_a_plan_is_an_object_or_made_by_the_planner(monkeypatch):
    plan = SimpleNamespace(parameters={"0.weight": "S(0)"})
    model = deepcompile.parallelize(net(), 1, plan=plan)
    assert str(next(model.parameters()).placements) == "(Shard(dim=0),)"
    asked = []

    def planned(model, mesh, example_inputs, memory_limit, constraints, device):
        asked.append((str(mesh), example_inputs, memory_limit, constraints, device))
        return plan

    monkeypatch.setattr(api, "_planned", planned)
    x = torch.randn(3, 4)
    deepcompile.parallelize(net(), 1, (x,), memory_limit="1GiB", constraints={"0.*": "R"})
    assert asked == [("tp=1", (x,), "1GiB", {"0.*": "R"}, torch.device("cpu"))]
    with pytest.raises(PartitionError, match=r"on no parameter; did you mean '0\.weight'"):
        deepcompile.parallelize(net(), 1, (x,), constraints={"0.weigth": "R"})


def test_tied_parameters_have_one_place():
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(PartitionError, match=r"the plan says '0\.weight' S\(0\) and '1\.weight' R"):
        deepcompile.parallelize(model, 1, plan={"0.weight": "S(0)", "1.weight": "R"})
    deepcompile.parallelize(model, 1, plan={"1.weight": "S(0)"})
    held = [module._parameters["weight"] for module in model]
    assert held[0] is held[1]
    assert len(list(model.parameters())) == 1


def test_what_is_kept_of_parameters_and_buffers():
    model = net()
    model[0].weight.requires_grad_(False)
    model[0].weight.mark = "mine"
    values = {name: value.clone() for name, value in model.state_dict().items()}
    mean = model[1].running_mean
    deepcompile.parallelize(model, 1, plan={})
    assert model[1].running_mean is mean
    weight = next(model.parameters())
    assert weight.mark == "mine"
    assert not weight.requires_grad
    assert all(torch.equal(values[name], value) for name, value in whole(model).items())


# Values of a model on meta.


def on_meta(make=net) -> nn.Module:
    with torch.device("meta"):
        return make()


def test_initialised_as_the_model_itself_would():
    torch.manual_seed(3)
    expected = net()
    after = torch.rand(1)
    torch.manual_seed(3)
    model = deepcompile.parallelize(on_meta(), 1, plan={"0.weight": "S(0)"})
    check_equal(model, expected)
    assert torch.equal(torch.rand(1), after)
    assert model(torch.randn(3, 4)).isfinite().all()


def test_no_whole_parameter_outlives_its_placing():
    """Of a model that is made, and of one on meta: the last is freed before the next is made."""
    model = net()
    given = [weakref.ref(parameter) for parameter in model.parameters()]
    deepcompile.parallelize(model, 1, plan={})
    assert not any(ref() is not None for ref in given)
    made: list[weakref.ref[torch.Tensor]] = []

    def init(name, shape, dtype):
        assert all(ref() is None for ref in made)
        value = torch.zeros(shape, dtype=dtype)
        made.append(weakref.ref(value))
        return value

    meta = on_meta(lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)))
    deepcompile.parallelize(meta, 1, plan={}, init=init)
    assert len(made) == 4


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.arange(3), persistent=False)


class Around(nn.Module):
    """As models of `transformers` have it: the model knows how to initialise its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bare()

    def _init_weights(self, module):
        if isinstance(module, Bare):
            nn.init.constant_(module.scale, 5.0)
            module.table.copy_(torch.arange(3))


def test_initialised_by_the_model_around():
    model = deepcompile.parallelize(on_meta(Around), 1, plan={})
    assert model.inner.scale.tolist() == [5.0] * 3
    assert model.inner.table.tolist() == [0, 1, 2]


def test_what_nothing_initialises_is_an_error_and_a_function_helps():
    with pytest.raises(PartitionError, match="Bare does not initialise its 'scale', 'table'; give"):
        deepcompile.parallelize(on_meta(Bare), 1, plan={})
    asked = []

    def init(name, shape, dtype):
        asked.append((name, shape, dtype))
        return torch.full(shape, 2, dtype=dtype)

    model = deepcompile.parallelize(on_meta(Bare), 1, plan={}, init=init)
    assert asked == [("scale", (3,), torch.float32), ("table", (3,), torch.int64)]
    assert model.scale.tolist() == [2.0] * 3
    with pytest.raises(PartitionError, match=r"init gave \(1,\) for 'scale'"):
        deepcompile.parallelize(on_meta(Bare), 1, plan={}, init=lambda *_: torch.ones(1))
    with pytest.raises(PartitionError, match="init is 'model' or a function"):
        deepcompile.parallelize(on_meta(Bare), 1, plan={}, init="zeros")


@pytest.fixture
def files(tmp_path):
    """A model and its values as one file, and as two with an index."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    torch.manual_seed(1)
    model = net()
    model[1].running_mean.fill_(7)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(tmp_path / "all.safetensors"))
    parts = tmp_path / "parts"
    parts.mkdir()
    halves = {"a.safetensors": list(state)[:3], "b.safetensors": list(state)[3:]}
    for name, keys in halves.items():
        save_file({key: state[key] for key in keys}, str(parts / name))
    weight_map = {key: name for name, keys in halves.items() for key in keys}
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return model, tmp_path / "all.safetensors", parts, index


@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize("make", [on_meta, net])
def test_values_from_files(files, which, make):
    plan = {"0.weight": "S(0;3,3)", "2.weight": "S(1)"}
    model = deepcompile.parallelize(make(), 1, plan=plan, checkpoint=files[which])
    check_equal(model, files[0])


def test_only_shares_are_read(files, monkeypatch):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    read = {}

    class Counting:
        def __init__(self, path, **kwargs):
            self.file = opens(path, **kwargs)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            read[name] = read.get(name, 0) + 1
            return self.file.get_tensor(name)

        def get_slice(self, name):
            rows = self.file.get_slice(name)

            class Rows:
                get_shape = rows.get_shape

                def __getitem__(self, chosen):
                    part = rows[chosen]
                    read[name] = read.get(name, 0) + part.numel()
                    return part

            return Rows()

    opens = safetensors_files._safe_open()
    monkeypatch.setattr(safetensors_files, "_safe_open", lambda: Counting)
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    monkeypatch.setattr(api, "_decided_on_rank_0", lambda decide, entries: decide())
    monkeypatch.setattr(dist, "broadcast_object_list", lambda *_, **__: None)
    monkeypatch.setattr(dist, "all_gather_object", lambda *_, **__: None)
    plan = {"0.weight": "S(0;2,2,2)", "2.weight": "S(1)"}
    model = deepcompile.parallelize(on_meta(), 2, plan=plan, checkpoint=files[1])
    assert read["0.weight"] == 12
    assert read["2.weight"] == 12
    held = {name: p.to_local() for name, p in model.named_parameters()}
    expected = files[0]
    assert torch.equal(held["0.weight"], expected[0].weight[1::2])
    assert torch.equal(held["2.weight"], expected[2].weight[:, 3:])


def test_files_that_are_not_the_model(files, tmp_path, monkeypatch):
    def load(make, path, **kwargs):
        return deepcompile.parallelize(on_meta(make), 1, plan={}, checkpoint=path, **kwargs)

    def other():
        return nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Identity(), nn.Linear(6, 1))

    with pytest.raises(
        PartitionError, match=r"the checkpoint has no '3\.weight' \(it has '.\.weight"
    ):
        load(other, files[1])
    with pytest.raises(PartitionError, match=r"has no 'scale'.*init='model' or a function"):
        load(Bare, files[1])
    with pytest.raises(PartitionError, match=r"'0\.weight' has shape \(6, 4\) in all"):
        load(lambda: nn.Sequential(nn.Linear(4, 5)), files[1])
    for path in (tmp_path / "none.safetensors", tmp_path / "none"):
        with pytest.raises(PartitionError, match="no safetensors file"):
            load(net, path)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(PartitionError, match="no index of safetensors"):
        load(net, tmp_path / "bad.json")
    model = load(other, files[1], init=lambda _, shape, dtype: torch.zeros(shape, dtype=dtype))
    assert torch.equal(model[0].weight, files[0][0].weight)
    assert not model[3].weight.count_nonzero()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(PartitionError, match="pip install safetensors"):
        load(net, files[1])


# State.


def test_loading_whole_values():
    model, other = net(), net()
    other[1].running_var.fill_(3)
    deepcompile.parallelize(model, 1, plan={"0.weight": "S(1;2,2)"})
    deepcompile.load_full_state_dict(model, other.state_dict())
    check_equal(model, other)
    for wrong, says in (
        ({"0.weigth": torch.ones(1)}, "unknown name in the state dict '0.weigth'; did you mean"),
        ({}, "the state dict has no '0.weight'"),
        (None, "rank 0 gave no state dict"),
        ({**other.state_dict(), "0.bias": torch.ones(1)}, "'0.bias' has shape"),
    ):
        with pytest.raises(PartitionError, match=says):
            deepcompile.load_full_state_dict(model, wrong)
    deepcompile.load_full_state_dict(model, {"0.bias": torch.zeros(6)}, strict=False)
    assert not model[0].bias.count_nonzero()


def test_saved_for_transformers(tmp_path):
    """Placed, saved by `save_pretrained` and read back, tied embeddings and all."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8, use_cache=False
    )
    torch.manual_seed(0)
    twin = transformers.GPT2LMHeadModel(config).eval()
    twin.save_pretrained(tmp_path / "given")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    plan = {"transformer.h.0.attn.c_attn.weight": "S(1;8,8,8)"}
    model = deepcompile.parallelize(
        model, 1, plan=plan, checkpoint=tmp_path / "given", init="model"
    ).eval()
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(model(tokens).logits, twin(tokens).logits)
    model.save_pretrained(tmp_path / "saved", state_dict=deepcompile.full_state_dict(model))
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(tokens).logits, twin(tokens).logits)


def test_initialised_by_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=32,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = deepcompile.parallelize(model, 1, plan={})
    loss = model(torch.arange(6)[None], labels=torch.arange(6)[None]).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.parameters())
    frequencies = transformers.LlamaForCausalLM(config).model.rotary_emb.inv_freq
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
