"""`deepcompile diff`: passes of a run, two runs, kernels; exit statuses as of diff(1)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.inspect.reader import find_run, list_runs

pytestmark = pytest.mark.usefixtures("root")


def test_changed_passes_with_op_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff"]) is Exit.NO
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "graph g0_forward"
    assert [line.split()[1] for line in lines[2:4]] == ["input", "fuse-rows"]
    assert "aten.cos.default -1, aten.sin.default -1, getitem +1, kernel +1" in lines[3]
    assert run(["diff", "--all", "--graph", "g0_forward"]) is Exit.NO
    assert "canonicalise" in capsys.readouterr().out
    assert run(["diff", "--json"]) is Exit.NO
    document = json.loads(capsys.readouterr().out)
    assert [row["pass"] for row in document["passes"]] == ["fuse-rows"] * 2


def test_what_a_pass_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", "fuse-rows", "--graph", "g0_forward"]) is Exit.NO
    assert capsys.readouterr().out.splitlines() == [
        "graph g0_forward: 000 input -> 002 fuse-rows",
        "ops: aten.cos.default -1, aten.sin.default -1, getitem +1, kernel +1",
        "nodes: 2 added, 2 removed, 1 changed",
        "  %x : f32[4] = placeholder",
        "- %sin : f32[4] = aten.sin.default(%x)  # model.py:3",
        "- %cos : f32[4] = aten.cos.default(%sin)  # model.py:4",
        "+ %k0 : (f32[4]) = kernel @k0(%x)  # model.py:3",
        "+ %getitem : f32[4] = getitem(%k0, 0)  # model.py:3",
        "- %view : f32[2, 2] = aten.view.default(%cos, [2, 2])  # model.py:5",
        "+ %view : f32[2, 2] = aten.view.default(%getitem, [2, 2])  # model.py:5",
        "  return (%view,)",
    ]
    assert run(["diff", "fuse-rows", "--graph", "g0_forward", "--stat"]) is Exit.NO
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run(["diff", "canonicalise"]) is Exit.OK
    assert "ops: the same" in capsys.readouterr().out
    assert run(["diff", "first", "last", "--json"]) is Exit.NO
    found = json.loads(capsys.readouterr().out)["differences"]
    assert [row["graph"] for row in found] == ["g0_forward", "g1_inference"]
    assert found[0]["counts"] == {"added": 2, "removed": 2, "changed": 1, "renamed": 0, "moved": 0,
                                  "same": 2}  # fmt: skip


def test_side_by_side(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["diff", "fuse-rows", "--graph", "g0_forward", "--side"]) is Exit.NO
    lines = capsys.readouterr().out.splitlines()[3:]
    assert len({line.index(" | ") for line in lines if " | " in line}) == 1
    changed = next(line for line in lines if line.startswith("~"))
    assert changed.endswith(
        "| %view : f32[2, 2] = aten.view.default(%getitem, [2, 2])  # model.py:5"
    )
    monkeypatch.setattr("deepcompile.cli.diff.columns", lambda: 40)
    assert run(["diff", "fuse-rows", "--graph", "g0_forward", "--side"]) is Exit.NO
    lines = capsys.readouterr().out.splitlines()[3:]
    assert max(map(len, lines)) <= 40


def test_a_run_and_itself(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", str(root), str(root)]) is Exit.OK
    assert "nodes: the same" in capsys.readouterr().out


def test_two_runs(another: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = next(path for path in list_runs(root) if path != another)
    info = json.loads((another / "run.json").read_text())
    info["versions"]["torch"] = "2.14.0"
    info["schema"] = 99
    (another / "run.json").write_text(json.dumps(info))
    file = another / "graphs/g0_forward/002_fuse-rows.ir"
    file.write_text(file.read_text().replace("[2, 2])", "[4, 1])").replace("k0", "k7"))
    assert run(["diff", first.name, another.name]) is Exit.NO
    shown = capsys.readouterr()
    assert "versions.torch: 2.13.0 -> 2.14.0" in shown.out
    assert "nodes: 1 changed, 1 renamed" in shown.out
    assert "[4, 1]" not in shown.out
    assert "written by a newer deepcompile" in shown.err
    assert run(["diff", first.name, another.name, "--unified"]) is Exit.NO
    assert "[4, 1]" in capsys.readouterr().out
    assert run(["diff", first.name, another.name, "--graph", "g1_inference"]) is Exit.OK
    assert run(["diff", first.name, another.name, "--at", "input"]) is Exit.OK
    file.write_text(file.read_text().replace("[4, 1])", "[2, 2])"))
    capsys.readouterr()
    assert run(["diff", first.name, another.name]) is Exit.NO
    assert run(["diff", first.name, another.name, "--ignore", "names,order"]) is Exit.OK
    (another / "graphs/g1_inference").rename(another / "graphs/g2")
    for state in (another / "graphs/g2").glob("*.json"):
        state.write_text(state.read_text().replace("g1_inference", "g2_backward"))
    state = another / "graphs/g2/000_input.json"
    state.write_text(state.read_text().replace('"inference"', '"backward"'))
    capsys.readouterr()
    assert run(["diff", first.name, another.name, "--ignore", "names"]) is Exit.NO
    assert "only in" in capsys.readouterr().out


def test_kernels_of_two_runs(another: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = next(path for path in list_runs(root) if path != another)
    assert run(["diff", first.name, another.name, "--kernels"]) is Exit.NO
    text = capsys.readouterr().out
    assert "0 kernels are the same, 2 differ" in text
    assert "-void kernel() { add(1.0); }" in text
    assert "+void kernel() { add(2.0); }" in text
    assert run(["diff", first.name, first.name, "--kernels"]) is Exit.OK
    assert run(["diff", first.name, another.name, "--kernels", "--json"]) is Exit.NO
    capsys.readouterr()
    # Other numbers of kernels and other lines of the program are no difference.
    meta = another / "kernels/g0_forward.k0/meta.json"
    meta.write_text(meta.read_text().replace("model.py:3", "model.py:30").replace('"k0"', '"k5"'))
    source = another / "kernels/g0_forward.k0/source.cpp"
    source.write_text("void k5() { add(1.0); }\n")
    (another / "kernels/g0_forward.k0").rename(another / "kernels/g0_forward.k5")
    assert run(["diff", first.name, another.name, "--kernels"]) is Exit.NO
    assert "1 kernels are the same, 1 differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fuse-row"], "did you mean 'fuse-rows'?"),
        (["--kernels"], "--kernels compares two runs"),
        (["--unified", "--side"], "either --unified or --side"),
        (["--ignore", "types"], "--ignore takes names and order"),
        (["--graph", "g0"], "unknown graph 'g0'"),
        (["first"], "is the first state"),
        (["./nowhere"], "no run './nowhere'"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", *arguments]) is Exit.USAGE
    assert message in capsys.readouterr().err


def test_a_state_that_cannot_be_read_is_noted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = find_run(root) / "graphs/g0_forward/002_fuse-rows.ir"
    state.unlink()
    state.symlink_to("/etc/passwd")
    assert run(["diff", "--unified"]) is Exit.NO
    shown = capsys.readouterr()
    assert "leads out of the run" in shown.err
    assert "graph g1_inference" in shown.out
    assert "root:" not in shown.out
