"""`deepcompile show`: states, neighbourhoods, blocks, and the formats of other tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.inspect import dot
from deepcompile.inspect.dot import dot_text, quoted, svg_text
from deepcompile.inspect.ir_text import parse_ir
from deepcompile.inspect.reader import find_run

pytestmark = pytest.mark.usefixtures("root")


def test_a_run_of_several_graphs_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show"]) is Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["g0_forward", "forward", "3", "1", "input", "fuse-rows"]
    assert run(["show", "--json"]) is Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert [state["kept"] for state in document["graphs"][0]["states"]] == [True, False, True]


@pytest.mark.parametrize(
    ("at", "file"),
    [("last", "002_fuse-rows"), ("fuse-rows", "002_fuse-rows"), ("fuse-rows#1", "002_fuse-rows"),
     ("0", "000_input"), ("first", "000_input"), ("canonicalise", "000_input"), ("1", "000_input")],
)  # fmt: skip
def test_states_print_as_they_are(
    root: Path, at: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", "g0_forward", "--at", at]) is Exit.OK
    shown = capsys.readouterr()
    assert shown.out == (find_run(root) / f"graphs/g0_forward/{file}.ir").read_text()
    assert "graph g0_forward at" in shown.err
    assert ("changed nothing" in shown.err) == (at in ("canonicalise", "1"))


def test_a_node_and_what_is_around_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "g0_forward", "--node", "%k0"]) is Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in lines[:3]] == ["  %x : f", "> %k0 : ", "  %getit"]
    assert lines[-1] == "  %k0 is used by %getitem"
    assert run(["show", "g0_forward", "--node", "sin", "--around", "2", "--at", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [node["name"] for node in document["nodes"]] == ["x", "sin", "cos", "view"]
    assert document["nodes"][1]["users"] == ["cos"]
    assert document["nodes"][1]["module"] == "layers.0"


def test_blocks_of_modules(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "g0_forward", "--at", "0", "--collapse", "2", "--json"]) is Exit.OK
    found = json.loads(capsys.readouterr().out)["blocks"]
    assert [(block["name"], block["nodes"]) for block in found] == [
        ("inputs", ["x"]), ("layers.0", ["sin", "cos"]), ("(top)", ["view", "return"]),
    ]  # fmt: skip
    assert found[1]["inputs"] == {"inputs": 1}
    assert run(["show", "g0_forward", "--at", "0", "--collapse", "1"]) is Exit.OK
    assert "layers" in capsys.readouterr().out


def test_model_explorer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "--format", "model-explorer"]) is Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"label", "graphs"}
    graph = document["graphs"][0]
    assert (graph["id"], len(document["graphs"])) == ("g0_forward", 2)
    ids = [node["id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)
    for node in graph["nodes"]:
        assert {"id", "label", "namespace", "attrs", "incomingEdges"} <= set(node)
        assert all(edge["sourceNodeId"] in ids for edge in node["incomingEdges"])
        assert all(isinstance(attr["value"], str) for attr in node["attrs"])
    kernel = next(node for node in graph["nodes"] if node["id"] == "k0")
    assert kernel["label"] == "kernel"


def test_dot_escapes_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "g0_forward", "--format", "dot"]) is Exit.OK
    text = capsys.readouterr().out
    assert text.startswith("digraph {")
    assert 'label="%k0\\nkernel @k0\\n(f32[4])"' in text
    assert "n0 -> n1;" in text
    hostile = parse_ir('graph {\n  %a = f("->", "\\\\\\" ]; evil [<b>")\n  %b = g(%a)\n}\n')
    drawn = dot_text(hostile, title='"];\nx [label="')
    assert drawn.count("\n") == 3 + 2 + 1 + 1
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'


def test_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho '<svg/>'\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program) if name == "dot" else None)
    assert run(["show", "g0_forward", "--svg", "out.svg"]) is Exit.OK
    assert (tmp_path / "out.svg").read_text() == "<svg/>\n"
    program.write_text("#!/bin/sh\necho 'syntax error' >&2\nexit 1\n")
    assert run(["show", "g0_forward", "--svg", "out.svg"]) is Exit.USAGE
    assert "dot fails: syntax error" in capsys.readouterr().err
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(dot, "SECONDS", 0.2)
    assert run(["show", "g0_forward", "--svg", "out.svg"]) is Exit.USAGE
    assert "dot takes more than" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(["show", "g0_forward", "--svg", "out.svg"]) is Exit.USAGE
    assert "there is no graphviz here" in capsys.readouterr().err
    with pytest.raises(Exception, match="501 nodes are too many"):
        svg_text("", 501)


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_svg_of_graphviz(tmp_path: Path) -> None:
    assert run(["show", "g0_forward", "--svg", "out.svg"]) is Exit.OK
    assert "</svg>" in (tmp_path / "out.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["g0_foward"], "unknown graph 'g0_foward'; did you mean 'g0_forward'?"),
        (["g0_forward", "--at", "fuse-row"], "did you mean 'fuse-rows'?"),
        (["g0_forward", "--at", "7"], "has no state 7; there are 0 to 2"),
        (["g0_forward", "--at", "fuse-rows#2"], "fuse-rows ran 1 times"),
        (["g0_forward", "--node", "getitm"], "did you mean 'getitem'?"),
        (["nowhere", "g0_forward"], "no run 'nowhere'"),
        (["./nowhere"], "no run './nowhere'"),
        (["--format", "dot"], "name one of the graphs: g0_forward, g1_inference"),
        (["--node", "nix"], "no graph of"),
        (["a", "b", "c"], "at most RUN and GRAPH"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", *arguments]) is Exit.USAGE
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_runs_by_name_folder_and_path(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = find_run(root).name
    for words in ([name], [str(root / name)], [str(root)], ["latest"], ["runs"]):
        assert run(["show", *words, "g0_forward"]) is Exit.OK
        assert capsys.readouterr().out.startswith("graph {")
    assert run(["show", name[:-1] + "x"]) is Exit.USAGE
    assert "unknown graph" in capsys.readouterr().err
    assert run(["show", name[:-1] + "x", "g0_forward"]) is Exit.USAGE
    assert f"did you mean '{name}'?" in capsys.readouterr().err
