"""`deepcompile run` and `explain`: results, costs, breaks, and exit statuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.comparison.observe import Observed
from deepcompile.comparison.values import Tolerance, differences
from deepcompile.inspect.reader import read_run
from deepcompile.pipeline import registry
from deepcompile.pipeline.protocol import PassResult

MODELS = f"{Path(__file__).parent / 'models.py'}"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@dataclass(frozen=True)
class WrongConstant:
    """Double what is not asked for."""

    name: ClassVar[str] = "wrong-constant"
    phase: ClassVar[str] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    def run(self, graph: Any, ctx: Any) -> PassResult:
        result = torch.fx.GraphModule(graph, torch.fx.Graph())
        result.graph.output(result.graph.graph_copy(graph.graph, {}))
        for node in result.graph.nodes:
            if node.target is torch.ops.aten.relu.default:
                node.target = torch.ops.aten.sin.default
        return PassResult(result, True)


@pytest.fixture
def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.default_registry()
    monkeypatch.setitem(known._table, "wrong-constant", f"{__name__}:WrongConstant")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Exit, str, str]:
    status = run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_model_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, "run", f"{MODELS}:net", "--repeat", "2", "--json")
    assert status == Exit.OK
    found = json.loads(out)
    assert (found["agrees"], found["train"], found["run"]) == (True, True, None)
    names = [one["name"] for one in found["differences"]]
    assert names[0] == "output 0"
    assert "gradient of up.weight" in names
    assert "buffer norm.running_mean" in names
    assert [graph["kind"] for graph in found["graphs"]] == ["forward", "backward"]
    assert found["eager"]["peak"] > 0
    assert len(found["compiled"]["samples"]) == 2
    assert found["speedup"] > 0
    assert not list(Path().iterdir())


def test_text_without_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--mode", "infer", "--dtype", "float64", "--repeat", "0", "--all")
    status, out, _ = command(capsys, "run", f"{MODELS}:net", *arguments)
    assert status == Exit.OK
    assert "all 1 outputs and written buffers agree" in out
    assert "float64[8, 4]" in out
    assert "gradient" not in out
    assert "inference" in out


@pytest.mark.usefixtures("wrong_pass")
def test_a_mismatch_is_told_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "run", f"{MODELS}:net", "--pipeline", "wrong-constant", "--repeat", "0", "--mode", "infer",
        "--dump", "changed", "--out", "runs",
    )  # fmt: skip
    status, out, _ = command(capsys, *arguments)
    assert status == Exit.NO
    assert "1 of 1 outputs and written buffers differ" in out
    assert "differs by" in out
    recorded = read_run("runs")
    assert str(recorded.path) in out
    assert [state.name for graph in recorded.graphs for state in graph.states if state.path] == [
        "input",
        "wrong-constant",
    ]
    status, _, _ = command(capsys, *arguments[:-4], "--atol", "10")
    assert status == Exit.OK
    status, out, _ = command(capsys, *arguments[:-4], "--no-check")
    assert status == Exit.OK
    assert "not compared" in out


def test_random_numbers_are_those_of_eager(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, "run", f"{MODELS}:dropping", "--repeat", "0")
    assert status == Exit.OK
    assert "drawn as eager" in err
    assert "gradient of input 0" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("run", f"{MODELS}:raising"), Exit.MODEL_FAILED, "the model itself fails: ValueError"),
        (("explain", f"{MODELS}:raising"), Exit.MODEL_FAILED, "the model fails: ValueError"),
        (("dump", f"{MODELS}:reading"), Exit.MODEL_FAILED, "looks at values of its tensors"),
        (("run", f"{MODELS}:failing"), Exit.MODEL_FAILED, "ValueError: no data \\x1b[31m, at "),
        (("run", f"{MODELS}:NUMBER"), Exit.USAGE, "NUMBER in "),
        (("probe", f"{MODELS}:raising"), Exit.MODEL_FAILED, "fails: ValueError: no such input"),
        (("run", f"{MODELS}:nett"), Exit.USAGE, "did you mean 'net'"),
        (("run", "nowhere.py:net"), Exit.USAGE, "no file 'nowhere.py'"),
        (("run", f"{MODELS}:leaving"), Exit.MODEL_FAILED, "ended the process with status 7"),
        (("bisect", f"{MODELS}:nett"), Exit.USAGE, "did you mean 'net'"),
        (("minify", f"{MODELS}:nett"), Exit.USAGE, "did you mean 'net'"),
        (("bisect", "nowhere.py:net"), Exit.USAGE, "no file 'nowhere.py'"),
        (("minify", "demo:transformr"), Exit.USAGE, "no demo 'transformr'"),
        (("run", f"{MODELS}:net", "--device", "tpu"), Exit.USAGE, "'tpu' is no device"),
        (("run", f"{MODELS}:net", "--disable", "fuse-row"), Exit.USAGE, "did you mean 'fuse-rows'"),
        (("dump", f"{MODELS}:net", "--graphs", "("), Exit.USAGE, "no regular expression"),
        (("dump", f"{MODELS}:net", "--upto", "fuse"), Exit.USAGE, "did you mean 'fuse-rows'"),
        (("dump", f"{MODELS}:net", "--device", "cuda"), Exit.USAGE, "traced on the CPU"),
    ],
)
def test_what_fails_says_why(
    arguments: tuple[str, ...], status: Exit, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = command(capsys, *arguments)
    assert found == status
    assert message in err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "SyntaxError: invalid syntax, at "),
        ("import nowhere", "No module named 'nowhere'"),
    ],
)
def test_a_file_that_cannot_be_imported(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken_file.py"
    file.write_text(text)
    found, out, err = command(capsys, "run", f"{file}:make")
    assert found is Exit.MODEL_FAILED
    assert message in err
    assert f"{file}:1" in err
    assert "Traceback" not in err
    assert out == ""


def test_explain_names_lines_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, "explain", f"{MODELS}:broken", "--top", "2")
    assert status == Exit.OK
    lines = Path(MODELS).read_text().splitlines()
    branch = 1 + next(n for n, line in enumerate(lines) if "a branch on values" in line)
    assert f"models.py:{branch}" in out
    assert "fix: the branch depends on values of a tensor" in out
    assert "and 1 more: --top 3" in out
    assert "fallbacks to eager: none" in out
    assert "assumed self.calls == 0" in out
    assert "from the model" not in out
    assert "from the model" in err
    status, out, _ = command(capsys, "explain", f"{MODELS}:broken", "--json")
    found = json.loads(out)
    assert len(found["graph_breaks"]) == 3
    assert all(one["hint"] for one in found["graph_breaks"])
    assert any("self.calls" in one["guard"] for one in found["recompiles"])


def test_explain_all_has_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, "explain", f"{MODELS}:net", "--all")
    assert status == Exit.OK
    assert "graph breaks: none" in out
    assert "kernels, by bytes moved" in out


class TestDump:
    def test_keeps_all_graphs_and_builds_nothing(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("a kernel was built")

        monkeypatch.setattr("deepcompile.backend.build", refuse)
        status, out, _ = command(capsys, "dump", f"{MODELS}:net", "--out", "runs")
        assert status == Exit.OK
        recorded = read_run("runs")
        assert out.splitlines()[0].endswith(str(recorded.path))
        assert (recorded.path / "index.md").read_text() in out
        kinds = [graph.name.rpartition("_")[2] for graph in recorded.graphs]
        assert kinds == ["joint", "forward", "backward"]
        assert len(recorded.kernels) > 1
        assert not recorded.fallbacks

    def test_parts(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("dump", f"{MODELS}:net", "--graphs", "joint|forw", "--passes", "canon")
        status, out, _ = command(capsys, *arguments, "--all", "--json")
        assert status == Exit.OK
        found = json.loads(out)
        texts = {
            graph["name"].rpartition("_")[2]: [s["pass"] for s in graph["states"] if s["file"]]
            for graph in found["graphs"]
        }
        assert texts == {"joint": ["input", "canonicalise"], "forward": ["input", "canonicalise"]}

    def test_up_to_a_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("dump", f"{MODELS}:net", "--upto", "joint:canonicalise", "--json")
        found = json.loads(command(capsys, *arguments)[1])
        states = {g["name"].rpartition("_")[2]: len(g["states"]) for g in found["graphs"]}
        assert states == {"joint": 5, "forward": 1, "backward": 1}
        assert found["kernels"] == []

    def test_interrupted(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("deepcompile.backend.make_program", interrupt)
        status, _, _ = command(capsys, "dump", f"{MODELS}:net", "--out", "stopped")
        assert status == Exit.INTERRUPTED
        recorded = read_run("stopped")
        assert recorded.status == "interrupted"
        assert [graph.name.rpartition("_")[2] for graph in recorded.graphs] == ["joint", "forward"]


def found_in(expected: Tensor, actual: Tensor, rtol: float | None = None) -> str:
    observed = [Observed({"x": tensor}, {}, {}) for tensor in (expected, actual)]
    (one,) = differences(*observed, Tolerance(rtol))
    return one.problem


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "actual", "problem"),
    [
        ([1.0, NAN, INF], [1.0, NAN, INF], ""),
        ([1.0, NAN], [1.0, 2.0], "NaN at other places"),
        ([1.0, INF], [1.0, -INF], "infinite at other places"),
        ([1.0, 2.0], [1.0, INF], "infinite at other places"),
        ([1.0, 100.0], [1.005, 100.0], ""),
        ([1.0, 1.0], [1.005, 1.0], "differs by 0.005"),
        ([], [], ""),
    ],
)
def test_differences(expected: list[float], actual: list[float], problem: str) -> None:
    said = found_in(torch.tensor(expected), torch.tensor(actual))
    assert said.startswith(problem) if not problem else problem in said
    assert bool(said) == bool(problem)


def test_differences_of_types_and_of_missing_results() -> None:
    assert "float64[2] when compiled" in found_in(torch.ones(2), torch.ones(2).double())
    assert "float32[3] when compiled" in found_in(torch.ones(2), torch.ones(3))
    assert "differs" in found_in(torch.ones(1), torch.full((1,), 1.00001), rtol=1e-6)
    one, other = Observed({"a": torch.ones(1)}, {}, {}), Observed({}, {"b": torch.ones(1)}, {})
    problems = [found.problem for found in differences(one, other, Tolerance())]
    assert problems == ["only in eager", "only compiled"]
