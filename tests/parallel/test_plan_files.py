"""Plans as files: made, pinned, compared, given back, and refused for another model or mesh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import deepcompile
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.errors import MeshError, PartitionError
from deepcompile.inspect.sharding import read_shardings
from deepcompile.ir.placements import placements_text

pytestmark = pytest.mark.usefixtures("alone", "own_cache")

CONSTRAINTS = {"up.weight": "S(0)"}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCOMPILE_CACHE_DIR", str(tmp_path / "cache"))


class Net(nn.Module):
    """Two products, of which the second may follow the first without communication."""

    def __init__(self, width: int = 24, last: str = "down") -> None:
        super().__init__()
        self.up = nn.Linear(8, width, bias=False)
        self.last = last
        self.add_module(last, nn.Linear(width, 8, bias=False))
        self.unread = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.last)(torch.relu(self.up(x))).square().mean()


INPUTS = (torch.zeros(6, 8),)


def planned(**options) -> deepcompile.Plan:
    options = {"device": "cpu", "constraints": CONSTRAINTS, **options}
    return deepcompile.plan(Net(), INPUTS, "tp=2", **options)


def two_ranks() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)


def texts(plan: deepcompile.Plan) -> dict[str, str]:
    return {name: placements_text(p) for name, p in plan.parameters.items()}


def test_a_plan_has_all_parameters_and_what_it_takes(tmp_path):
    plan = planned()
    assert texts(plan) == {"unread": "R", "up.weight": "S(0)", "down.weight": "S(1)"}
    assert plan.facts["unread"].dropped == ("no graph reads it",)
    assert plan.memory["one device"] == 2 * 8 * 24 * 16 + 12
    assert plan.memory["parameters"] == 8 * 24 * 16 + 12
    (move,) = [m for m in plan.moves if m.phase == "forward"]
    assert (move.kind, move.axis, move.near) == ("all_reduce", "tp", "down.weight")
    assert move.bytes == 6 * 8 * 4
    assert "test_plan_files.py" in move.line
    up = [plan.operations[name] for name in plan.facts["up.weight"].operations]
    assert any(text.startswith("aten.mm.default | R, S(1) -> S(1) | ") for text in up)
    plan.save(tmp_path / "plan.json")
    again = deepcompile.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert not plan.diff(again)


class Changing(Net):
    """Forward writes to a parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.up.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


def test_a_parameter_that_forward_writes_is_refused():
    with pytest.raises(PartitionError, match=r"forward writes to the parameter 'up\.weight'"):
        deepcompile.plan(Changing(), INPUTS, "tp=2", device="cpu")


class Branching(Net):
    """A branch on a tensor and a count of batches, both read by code in eager."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, momentum=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return super().forward(x if x.sum() > 0 else -x)


def test_a_branch_on_a_tensor_is_planned():
    plan = deepcompile.plan(Branching(), INPUTS, "tp=2", device="cpu")
    assert texts(plan)["up.weight"] != "R"


@pytest.mark.parametrize("axes", ["data", ("dp", "data")])
def test_axes_of_data_that_the_mesh_does_not_have(axes):
    with pytest.raises(MeshError, match="data_axes names 'data', which is no axis of the mesh"):
        deepcompile.plan(Net(), INPUTS, "dp=2,tp=2", device="cpu", data_axes=axes)


def test_axes_of_data_as_text():
    plan = deepcompile.plan(Net(), INPUTS, "a=2,tp=2", device="cpu", data_axes="a")
    assert plan.mesh.data == {"a"}


def test_what_does_not_divide_is_told():
    plan = deepcompile.plan(Net(width=21), INPUTS, "tp=4", device="cpu", memory_limit="unlimited")
    assert plan.facts["up.weight"].dropped == ("tp: S(0): 21 is not divisible by 4; by 3 it is",)
    dropped = [text for n in plan.facts["up.weight"].operations for text in plan.dropped[n]]
    assert any("extent 21 is not divisible by 4" in text for text in dropped)


def test_placements_of_a_plan_pin_another():
    first = planned(constraints={"down.weight": "S(0)"})
    again = planned(constraints=first.pinned("down.*"))
    assert texts(again)["down.weight"] == "S(0)"
    assert first.pinned().keys() == first.parameters.keys()
    with pytest.raises(PartitionError, match=r"no parameter 'dwn.weight'; did you mean 'down"):
        first.pinned("dwn.weight")


@pytest.mark.parametrize("kind", ["path", "text of a path", "plan", "mapping"])
def test_parallelize_takes_it(kind, tmp_path):
    plan = planned()
    path = tmp_path / "plan.json"
    plan.save(path)
    given = {"path": path, "text of a path": str(path), "plan": plan, "mapping": plan.parameters}
    two_ranks()
    model = deepcompile.parallelize(Net(), "tp=2", plan=given[kind])
    parameters = dict(model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    assert parameters["up.weight"].to_local().shape == (12, 8)
    assert parameters["down.weight"].to_local().shape == (8, 12)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            lambda: Net(last="dwn"),
            r"another model: 1 parameter that the model does not have: 'down.weight' \(the model "
            r"has 'dwn.weight'\); 1 parameter of the model that the plan does not have: "
            r"'dwn.weight' \(the plan has 'down.weight'\)",
        ),
        (lambda: Net(width=16), r"'up.weight' is \(24, 8\) in the plan and \(16, 8\) in the model"),
        (lambda: nn.Linear(8, 8), "3 parameters that the model does not have"),
    ],
)
def test_a_plan_of_another_model_is_refused(model, says):
    two_ranks()
    with pytest.raises(PartitionError, match=says):
        deepcompile.parallelize(model(), "tp=2", plan=planned())


def test_a_plan_of_another_mesh_is_refused():
    plan = planned()
    two_ranks()
    for mesh in ("dp=1,tp=2", "dp=2"):
        with pytest.raises(PartitionError, match=rf"for the mesh tp=2, not for {mesh}"):
            deepcompile.parallelize(Net(), mesh, plan=plan)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"mesh": "tp=2", "parameters": {"up": "Q"}}'])
def test_a_file_that_is_no_plan_is_refused(text, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    two_ranks()
    with pytest.raises(PartitionError, match="plan"):
        deepcompile.parallelize(Net(), "tp=2", plan=str(path))
    with pytest.raises(PartitionError, match=r"cannot be read: .*No such file"):
        deepcompile.parallelize(Net(), "tp=2", plan=str(tmp_path / "missing.json"))


def test_runs_and_explain_tell_what_was_decided(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEEPCOMPILE_RUN_DIR", str(tmp_path / "runs"))
    plan = planned()
    two_ranks()
    model = deepcompile.parallelize(Net(), "tp=2", plan=plan)
    found = deepcompile.explain(model, *INPUTS)
    whole, graph = read_shardings(tmp_path / "runs")
    assert (whole.graph, graph.kind) == ("model", "joint")
    assert whole.plan == json.loads(json.dumps(plan.to_dict()))
    assert graph.parameters == {k: p for k, p in whole.parameters.items() if k != "unread"}
    assert graph.memory["saved"] <= whole.memory["saved"]
    (product,) = [text for text in graph.nodes.values() if "S(1), S(0) -> P(sum)" in text]
    assert product.startswith("aten.mm.default")
    assert "test_plan_files.py:" in product
    (facts,) = found.sharding
    assert facts.mesh == "tp=2"
    assert [(row.kind, row.phase) for row in facts.collectives] == [("all_reduce", "forward")]
    text = found.details()
    assert "on the mesh tp=2" in text
    assert "all_reduce on tp" in text
    assert json.dumps(found.to_dict())
    # A file of the run directory is a plan too.
    assert deepcompile.Plan.load(whole.file) == plan
    assert run(["sharding", str(tmp_path / "runs"), "--why", "up"]) is Exit.OK
    assert "lies as S(0) on tp=2, in model" in capsys.readouterr().out


def test_a_model_without_a_mesh_has_no_placements(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPCOMPILE_RUN_DIR", str(tmp_path / "runs"))
    found = deepcompile.explain(Net(), *INPUTS)
    assert found.sharding == ()
    assert not list(tmp_path.glob("runs/*/sharding"))


@pytest.fixture
def factory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def factory():\n"
        "    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8)), "
        "torch.zeros(6, 8)\n\n"
        "def function():\n    return torch.sin, torch.zeros(3)\n"
    )
    return "model.py:factory"


def test_planning_from_the_command_line(factory, capsys):
    arguments = ["sharding", "plan", factory, "--mesh", "tp=2", "--device", "cpu"]
    more = ["--constraint", "0.weight=S(0)", "-o", "plan.json", "--svg", "plan.svg"]
    assert run([*arguments, *more]) is Exit.OK
    captured = capsys.readouterr()
    assert "0.weight" in captured.out
    assert "wrote plan.json" in captured.err
    assert Path("plan.svg").stat().st_size > 1000
    plan = deepcompile.Plan.load("plan.json")
    assert texts(plan)["0.weight"] == "S(0)"
    # Placements of a file stay.
    assert run([*arguments, "--pin", "plan.json", "--json"]) is Exit.OK
    (document,) = json.loads(capsys.readouterr().out)["plans"]
    assert document["plan"]["parameters"] == plan.to_dict()["parameters"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--mesh", "two"], "is no mesh"),
        (["--mesh", "tp=2", "--constraint", "0.wight=R"], "did you mean '0.weight'"),
        (["--mesh", "tp=2", "--constraint", "0.weight"], "is not NAME=PLACEMENTS"),
        (["--mesh", "tp=2", "--pin", "missing.json"], "cannot be read"),
        (["--mesh", "tp=2", "--memory-limit", "much"], "memory_limit='much'"),
    ],
)
def test_bad_usage_of_planning(more, says, factory, capsys):
    assert run(["sharding", "plan", factory, *more]) is Exit.USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mesh", "constraints", "says"),
    [
        (
            "tp=5",
            {"up.weight": "S(1)"},
            r"dimension 1 of 'up\.weight' has 8 elements, which 5 ranks of axis 'tp' cannot share "
            r"equally; the nearest size that works is 10, or replicate it",
        ),
        ("tp=2", {"up.weight": "S(2)"}, r"'up\.weight' of shape \(\d+, 8\) has no dimension 2"),
        (
            "tp=2",
            {"up.weight": "S(0) R"},
            r"'up\.weight' has 2 placements; it needs one for .*: tp",
        ),
        ("tp=2", {"up.weight": "P(sum)"}, r"'up\.weight' is placed P\(sum\), which a parameter"),
        ("tp=2", {"up.weight": "X(0)"}, r"the constraint on 'up\.weight'.*X"),
        (
            "tp=2",
            {"up.*": "S(0)", "up.weight": "R"},
            r"constraints on 'up\.weight' contradict each",
        ),
    ],
)
def test_constraints_that_cannot_be_met(mesh, constraints, says):
    with pytest.raises(PartitionError, match=says):
        deepcompile.plan(Net(), INPUTS, mesh, constraints=constraints, device="cpu")


def test_planning_takes_modules(factory, capsys):
    assert run(["sharding", "plan", "model.py:function", "--mesh", "2"]) is Exit.USAGE
    assert "makes no torch.nn.Module" in capsys.readouterr().err
