"""`deepcompile opt`: what goes in, what comes out, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.errors import RunDirError
from deepcompile.inspect.resume import rest_of_run
from deepcompile.pipeline.rundir import RunDir

GRAPH = """\
graph forward {
  %x : f32[4, 8] = placeholder
  %view : f32[32] = aten.view.default(%x, [32])
  %view_1 : f32[4, 8] = aten.view.default(%view, [4, 8])  # model.py:7
  %sin : f32[4, 8] = aten.sin.default(%view_1)  # model.py:7
  %cos : f32[4, 8] = aten.cos.default(%sin)  # model.py:8
  return (%cos,)
}
"""
CANONICAL = """\
graph forward {
  %x : f32[4, 8] = placeholder
  %sin : f32[4, 8] = aten.sin.default(%x)  # model.py:7
  %cos : f32[4, 8] = aten.cos.default(%sin)  # model.py:8
  return (%cos,)
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "graph.ir"
    path.write_text(GRAPH)
    return path


def test_runs_passes_on_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["opt", str(file), "-p", "canonicalise"]) == Exit.OK
    assert capsys.readouterr().out == CANONICAL
    assert run(["opt", str(file), "-p", "joint(canonicalise),graph(fuse-rows)"]) == Exit.OK
    out = capsys.readouterr().out
    assert 'kernel @k0 makes f32[4, 8] of "sin.default", "cos.default" at "model.py:7"' in out


def test_reads_stdin_and_its_own_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GRAPH
    for passes in ("canonicalise", "fuse-rows", "canonicalise"):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert run(["opt", "-", "-p", passes]) == Exit.OK
        text = capsys.readouterr().out
    assert text.count("= kernel @k0(") == 1


def test_phases_go_by_the_kind(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def passes(kind: str) -> list[str]:
        arguments = ["opt", str(file), "--kind", kind, "--json", "--no-verify-each"]
        assert run([*arguments, "-p", "joint(functionalise-random),graph(canonicalise)"]) == Exit.OK
        document = json.loads(capsys.readouterr().out)
        assert document["text"].startswith(f"graph {kind} {{\n")
        return [one["pass"] for one in document["passes"]]

    assert passes("joint") == ["functionalise-random"]
    assert passes("inference") == ["functionalise-random", "canonicalise"]
    assert passes("backward") == ["canonicalise"]


def test_prints_after_a_pass(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["opt", str(file), "-p", "canonicalise,fuse-rows", "--print-after", "canonicalise"]
    assert run(arguments) == Exit.OK
    captured = capsys.readouterr()
    assert f"# after canonicalise: changed\n{CANONICAL}" in captured.err
    assert captured.out.count("aten.sin") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either -p PIPELINE or --from-run"),
        (["-p", "canonicalise", "--from-run"], "either -p PIPELINE or --from-run"),
        (["-p", "canonicalis"], "did you mean 'canonicalise'"),
        (["--from-run"], "is no state of a run"),
        (["-p", "fuse-rows", "--print-after", "canonicalise"], "unknown pass 'canonicalise'"),
    ],
)
def test_bad_usage(
    arguments: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["opt", str(file), *arguments]) == Exit.USAGE
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no graph at all", "line 1: expected 'graph {'"),
        (GRAPH.replace("%sin :", "%sin"), "line 5: "),
        (GRAPH.replace("[32])", 'opaque("DeviceMesh"))'), "has no text and cannot be rebuilt"),
        (GRAPH.replace("aten.sin.default", "python.os.system"), "cannot be rebuilt from text"),
        ("\0\x1b[2J", "expected 'graph {'"),
    ],
)
def test_bad_text(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.ir"
    path.write_text(text)
    assert run(["opt", str(path), "-p", "canonicalise"]) == Exit.USAGE
    assert message in capsys.readouterr().err
    assert run(["opt", str(tmp_path / "none.ir"), "-p", "canonicalise"]) == Exit.USAGE
    assert "No such file" in capsys.readouterr().err


def test_constants_that_the_text_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GRAPH.replace("graph forward {\n", "graph forward {\n  constant @c : f32[9000] = ...\n")
    text = text.replace("  return (%cos,)", "  %c : f32[9000] = get_attr @c\n  return (%cos, %c)")
    path = tmp_path / "large.ir"
    path.write_text(text)
    assert run(["opt", str(path), "-p", "canonicalise"]) == Exit.OK
    captured = capsys.readouterr()
    assert "constant @c : f32[9000] = ..." in captured.out
    assert "without values: c" in captured.err
    assert "not compared after canonicalise" in captured.err


class TestRestOfRun:
    @pytest.fixture
    def recorded(self, tmp_path: Path) -> RunDir:
        made = RunDir.create(tmp_path, options={"deterministic": True, "opt_limit": 3})
        made.graph_state("g", 0, "input", GRAPH, {"status": "input"})
        return made

    def test_a_second_try_and_what_was_left_out(self, recorded: RunDir) -> None:
        def state(index: int, name: str, status: str, text: str | None = None) -> None:
            recorded.graph_state("g", index, name, text, {"status": status, "pass": name})

        state(1, "batch-updates", "changed", "first try")
        state(2, "fuse-rows", "changed", "first try")
        state(1, "canonicalise", "changed", CANONICAL)
        state(2, "fuse-rows", "failed")
        state(3, "canonicalise", "unchanged")
        folder = recorded.path / "graphs" / "g"
        rest = rest_of_run(folder / "000_input.ir")
        assert rest.passes == ("canonicalise", "canonicalise")
        assert rest.left_out == (("fuse-rows", "failed"),)
        assert rest.last.text == CANONICAL
        assert rest.options["deterministic"] is True
        assert rest_of_run(folder / "001_batch-updates.ir").passes == ("fuse-rows",)
        assert rest_of_run(folder / "001_canonicalise.ir").passes == ("canonicalise",)

    def test_a_file_of_nothing(self, recorded: RunDir) -> None:
        stray = recorded.path / "graphs" / "g" / "stray.ir"
        stray.write_text(GRAPH)
        with pytest.raises(RunDirError, match="no description beside it"):
            rest_of_run(stray)
