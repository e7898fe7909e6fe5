"""`deepcompile sharding` on plan files and run directories: text, JSON, reasons, differences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.inspect.sharding import record_of
from deepcompile.inspect.sharding_svg import svg_of
from deepcompile.passes.partition.plan import Move, ParameterFacts, Plan
from deepcompile.pipeline.rundir import RunDir

MESH = "dp=2,tp=4"


def plan(layers: int = 4, odd: str | None = None, mesh: str = MESH) -> Plan:
    """Of a model of equal layers; in one of them the matrix `up` may lie as `odd`."""
    parameters, facts, moves = {"embed.weight": "R S(1)"}, {}, []
    for number in range(layers):
        name = f"layers.{number}"
        parameters[f"{name}.norm.weight"] = "R R"
        parameters[f"{name}.qkv.weight"] = "R S(0;64,64,64)"
        parameters[f"{name}.up.weight"] = odd if odd and number == 2 else "R S(0)"
        moves += [
            Move(kind, "tp", phase, f"mm_{number}", f"model.py:{number}", 4096, 1e-4, near=near)
            for kind, phase, near in (
                ("reduce_scatter", "forward", f"{name}.up.weight"),
                ("all_gather", "backward", f"{name}.qkv.weight"),
            )
        ]
        gradient = f"{name}.up.weight"
        moves.append(
            Move("all_reduce", "dp", "backward", gradient, "", 512, 2e-5, 1, True, gradient)
        )
        facts[gradient] = ParameterFacts(
            (256, 64), 16384, ("tp: S(1): 63 is not divisible by 4; by 3 it is",),
            ("R R", "R S(0)"), (f"mm_{number}",),
        )  # fmt: skip
    from_text = Plan.from_dict({"mesh": mesh, "parameters": parameters})
    return Plan(
        from_text.mesh,
        from_text.parameters,
        facts,
        "H100",
        {"total": 3e-3, "bound": 2.97e-3, "compute": 2e-3, "communication": 1e-3, "hidden": 2e-5},
        {"parameters": 1 << 20, "one device": 4 << 20, "saved": 1024, "saved on one device": 2048},
        tuple(moves),
        {f"mm_{n}": f"aten.mm.default | R R, R S(0) -> R S(1) | m.py:{n}" for n in range(layers)},
        {"mm_1": tuple(f"tp: S({n}), R -> S({n}): it has 3 rows" for n in range(12))},
        {"method": "milp"},
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    plan().save(path)
    return str(path)


@pytest.fixture
def runs(tmp_path: Path) -> str:
    """A run with the plan of a model and a graph that was compiled."""
    recorded = RunDir.create(tmp_path / "runs", name="x")
    whole = plan().to_dict()
    graph = {"graph": "g0_joint", "kind": "joint", "plan": plan().to_dict(), "nodes": {"mm": "a"}}
    recorded.sharding("g0_joint", graph)
    recorded.sharding("model", {"graph": "model", "kind": "model", "plan": whole})
    recorded.finish()
    return str(tmp_path / "runs")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, status: Exit = Exit.OK) -> str:
    assert run(["sharding", *arguments]) is status
    return capsys.readouterr().out


# What is shown.


def test_layers_that_lie_alike_are_one_line(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in shown(capsys, file).splitlines()]
    assert ["layers.*.up.weight", "R", "S(0)", "4", "0-3", "256x64", "64", "KiB"] in lines
    assert ["forward", "reduce_scatter", "tp", "4", "16", "KiB", "0.400", "ms", "-"] in lines
    assert ["backward", "all_reduce", "dp", "4", "2", "KiB", "0.080", "ms", "0.080", "ms"] in lines
    text = shown(capsys, file)
    assert "at most 1.01% above the best plan (milp)" in text
    assert "on a rank: 1 MiB, 0.25 times one device's 4 MiB" in text
    each = shown(capsys, file, "--all")
    assert all(f"layers.{number}.up.weight" in each for number in range(4))


def test_a_layer_that_lies_otherwise_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(odd="R R").save(tmp_path / "odd.json")
    text = shown(capsys, str(tmp_path / "odd.json"))
    assert "0-1,3" in text
    assert "layers.2.up.weight" in text


def test_a_plan_by_hand_needs_a_mesh_and_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"mesh": "tp=2", "parameters": {"a[bold].w": "S(0)"}}')
    text = shown(capsys, str(path))
    assert "a[bold].w" in text
    assert "collectives are not known" in text
    assert "a[bold].w" in shown(capsys, str(path), "--why", "a[bold]")


def test_a_run_has_the_model_and_its_graphs(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, runs)
    assert text.index("the plan of the model") < text.index("graph g0_joint")
    assert text.count("layers.*.up.weight") == 1
    assert "parameters lie as in the plan of the model" in text
    only = shown(capsys, runs, "--graph", "g0_joint")
    assert "the plan of the model" not in only
    assert run(["sharding", runs, "--graph", "g0_join"]) is Exit.USAGE
    assert "did you mean 'g0_joint'" in capsys.readouterr().err


def test_json_is_one_document(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(shown(capsys, runs, "--json"))
    assert (document["schema"], document["command"]) == (1, "sharding show")
    model, graph = document["plans"]
    assert (model["graph"], graph["graph"]) == ("model", "g0_joint")
    assert graph["nodes"] == {"mm": "a"}
    assert Plan.from_dict(model["plan"]).parameters == plan().parameters
    assert model["collectives"][0] == {
        "phase": "forward", "kind": "reduce_scatter", "axis": "tp", "count": 4, "bytes": 16384,
        "seconds": pytest.approx(4e-4), "hidden": 0.0,
    }  # fmt: skip


def test_ten_layers_of_graphs_are_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = RunDir.create(tmp_path, name="x")
    for number in (10, 2):
        recorded.sharding(
            f"g{number}_joint", {"graph": f"g{number}_joint", "plan": plan().to_dict()}
        )
    text = shown(capsys, str(tmp_path))
    assert text.index("g2_joint") < text.index("g10_joint")


# Why.


def test_why_names_what_was_dropped(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, file, "--why", "layers.1.up")
    assert "layers.1.up.weight (256 x 64) lies as R S(0) on dp=2,tp=4" in text
    assert "from: R R, R S(0)" in text
    assert "not tp: S(1): 63 is not divisible by 4; by 3 it is" in text
    assert "mm_1: aten.mm.default R R, R S(0) -> R S(1), m.py:1" in text
    assert "not tp: S(0), R -> S(0): it has 3 rows" in text
    assert "and 4 more: --json" in text
    document = json.loads(shown(capsys, file, "--why", "layers.1.up", "--json"))
    (parameter,) = document["parameters"]
    assert len(parameter["operations"][0]["dropped"]) == 12


@pytest.mark.parametrize(
    ("name", "count"), [("layers.3", 3), ("layers.*.up", 4), ("layers", 12), ("embed.weight", 1)]
)
def test_why_of_a_module_or_a_pattern(
    name: str, count: int, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, file, "--why", name).count(" lies as ") == count


def test_why_of_a_wrong_name_has_the_nearest(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sharding", file, "--why", "layers.1.upp"]) is Exit.USAGE
    captured = capsys.readouterr()
    assert "did you mean 'layers.1.up'?" in captured.err
    assert captured.out == ""


# Differences.


def test_diff_ends_with_1_where_plans_differ(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    plan(odd="R R").save(other)
    assert "no difference" in shown(capsys, file, "--diff", file)
    assert "layers.2.up.weight: R S(0) -> R R" in shown(
        capsys, file, "--diff", str(other), status=Exit.NO
    )
    plan(layers=8).save(other)
    text = shown(capsys, file, "--diff", str(other), status=Exit.NO)
    assert "layers.*.up.weight: absent -> R S(0)  x4" in text
    arguments = (file, "--diff", str(other), "--json")
    found = json.loads(shown(capsys, *arguments, status=Exit.NO))["differences"]["model"]
    assert "layers.7.up.weight: absent -> R S(0)" in found


# What is none.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no plan of placements"),
        ("[]", "holds no JSON object"),
        ("{}", "no 'mesh'"),
        ('{"mesh": "tp=2", "parameters": {"w": "S(0) R"}}', "w: 'S(0) R' for the axes of tp=2"),
        ('{"mesh": "tp=2", "parameters": {"w": 3}}', "is no plan of placements"),
        ('{"mesh": "two", "parameters": {"w": "R"}}', "is no plan of placements"),
        ('{"mesh": "tp=2", "parameters": {}, "moves": [{}]}', "is no plan of placements"),
        (
            '{"mesh": "tp=2", "parameters": {"w": "R"}, "facts": {"w": 3}}',
            "is no plan of placements",
        ),
    ],
)
def test_files_that_are_no_plans(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert run(["sharding", str(path)]) is Exit.USAGE
    assert says in capsys.readouterr().err


def test_a_run_without_placements_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDir.create(tmp_path, name="x").finish()
    assert run(["sharding", str(tmp_path)]) is Exit.USAGE
    assert "no model was placed on a mesh" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sharding", file, "--svg", "/no/such/folder/x.svg"]) is Exit.USAGE
    assert "cannot be written: No such file" in capsys.readouterr().err


def test_it_starts_without_torch_and_quickly(file: str, tmp_path: Path) -> None:
    picture = str(tmp_path / "plan.svg")
    program = (
        "import sys\n"
        "from deepcompile.cli.main import run\n"
        f"for more in ([], ['--json'], ['--why', 'embed'], ['--svg', {picture!r}]):\n"
        f"    assert run(['sharding', {file!r}, *more]) == 0\n"
        f"assert run(['sharding', 'plan', '--help']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

    def user_seconds() -> float:
        before = os.times().children_user
        command = [sys.executable, "-m", "deepcompile", "sharding", file]
        subprocess.run(command, check=True, capture_output=True)
        return os.times().children_user - before

    assert any(user_seconds() < 0.25 for _ in range(10))


# The picture.


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter()]


def test_equal_layers_are_drawn_once() -> None:
    svg = svg_of(record_of(plan(layers=100).to_dict()))
    assert "layers.0-99  x100" in texts(svg)
    assert len(svg) < 20_000
    assert "prefers-color-scheme:dark" in svg
    assert 'tabindex="0"' in svg
    assert "<script" not in svg


def test_a_layer_that_differs_is_drawn_by_itself() -> None:
    found = texts(svg_of(record_of(plan(layers=6, odd="R S(1)").to_dict())))
    assert [t for t in found if t.startswith("layers.") and ":" not in t] == [
        "layers.0-1  x2", "layers.2", "layers.3-5  x3",
    ]  # fmt: skip
    bar = "forward: 1 x reduce_scatter on tp, 4 KiB, 0.100 ms a layer"
    assert found.count(bar) == 4  # title and text of two runs of layers


def test_eighty_different_layers_are_less_than_a_megabyte() -> None:
    document = plan(layers=80).to_dict()
    for number in range(80):
        document["parameters"][f"layers.{number}.mlp.{number % 7}.weight"] = "R S(0;12x16)"
        for extra in range(10):
            document["parameters"][f"layers.{number}.more{extra}"] = f"R S({number % 3})"
    svg = svg_of(record_of(document))
    assert "layers.79" in texts(svg)
    assert 100_000 < len(svg.encode()) < 1_000_000


def test_the_picture_is_the_same_each_time_and_escaped() -> None:
    document = plan().to_dict()
    document["parameters"]['<script>alert("x")</script>&\x07.w'] = "R S(1)"
    document["moves"] += [{**document["moves"][0], "near": "gone.w", "kind": "<b>"}]
    svg = svg_of(record_of(document))
    assert svg == svg_of(record_of(json.loads(json.dumps(document))))
    assert "<script" not in svg
    assert any('<script>alert("x")</script>&\ufffd' in text for text in texts(svg))


def test_shares_are_divided_as_axes_shard_them() -> None:
    document: dict[str, Any] = {"mesh": "a=2,b=4", "parameters": {"x.w": "S(0) S(1)"}}
    document["facts"] = {"x.w": {"shape": [8, 8]}}
    svg = svg_of(record_of(document))
    drawn = [e for e in ET.fromstring(svg).iter() if e.tag.endswith("path")]
    paths = [e.get("d", "") for e in drawn if e.get("class") in ("s0", "cut")]
    share, cuts = paths
    assert share.count("z") == 1
    assert "h24.0v20.0" in share  # of 96 by 40
    assert (cuts.count("v"), cuts.count("h")) == (3, 1)


def test_output_of_a_picture(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.svg"
    assert run(["sharding", file, "--svg", str(path)]) is Exit.OK
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"wrote {path}" in captured.err
    ET.fromstring(path.read_text())
    assert os.path.getsize(path) > 1000
