"""`deepcompile trace`: compile time of a run as a Chrome trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.inspect.compile_trace import chrome_trace, spans
from deepcompile.inspect.reader import read_run
from deepcompile.pipeline.rundir import RunDir


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch._dynamo.reset()
    root = tmp_path_factory.mktemp("runs")
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    options = {"run_dir": str(root), "cache": False}
    torch.compile(model, backend="deepep", options=options)(torch.ones(2, 8)).sum().backward()
    return root


def slices(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == "X"]


def test_slices_nest_and_follow_the_compile(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "trace.json"
    assert run(["trace", str(recorded), "-o", str(target)]) is Exit.OK
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    assert "ui.perfetto.dev" in captured.err
    found = slices(json.loads(target.read_text()))
    names = [event["name"] for event in found]
    (forward,) = [event for event in found if event["name"].endswith("_forward")]
    assert names[0].startswith("capture g")
    start, end = forward["ts"], forward["ts"] + forward["dur"]
    inside = [e["name"] for e in found if start <= e["ts"] and e["ts"] + e["dur"] <= end + 1]
    assert inside == [forward["name"], "canonicalise", "fuse-rows", "codegen", "build"]
    assert forward["args"]["kernels"] == 1
    for outer in found:  # what overlaps is nested, as one thread of a trace must be
        for inner in found:
            starts_inside = outer["ts"] < inner["ts"] < outer["ts"] + outer["dur"]
            rest = outer["ts"] + outer["dur"] - inner["ts"] - inner["dur"]
            assert not starts_inside or rest > -1, (outer["name"], inner["name"])


def test_json_and_standard_output(
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["trace", str(recorded), "--json"]) is Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == "trace.json"
    assert set(document["seconds"]) == {"capture", "graph", "pass", "stage"}
    assert run(["trace", str(recorded), "-o", "-"]) is Exit.OK
    assert len(json.loads(capsys.readouterr().out)["traceEvents"]) == document["events"]
    assert run(["trace", str(recorded), "-o", "no/such/folder.json"]) is Exit.USAGE
    assert "cannot write" in capsys.readouterr().err


def test_runs_of_several_ranks_share_a_timeline(tmp_path: Path) -> None:
    for rank in range(2):
        found = RunDir.create(tmp_path, name="job", rank=rank)
        found.event("captured", number=0, began=100.0 + rank, seconds=2.0)
        found.event("fallback", graph="g0", reason="no\nway", origin="m.py:3")
    document = chrome_trace(map(read_run, sorted(tmp_path.glob("*-job-*"))))
    ranks = [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"]
    assert [name.rpartition(" ")[2] for name in ranks] == ["0", "1"]
    assert [e["ts"] for e in slices(document)] == [100e6, 101e6]
    (instant, _) = [e for e in document["traceEvents"] if e["ph"] == "i"]
    assert instant["name"] == "fallback: no\nway"
    assert instant["args"]["origin"] == "m.py:3"


def test_damaged_numbers_are_no_times(tmp_path: Path) -> None:
    found = RunDir.create(tmp_path, rank=0)
    found.graph_state("g0", 1, "fold", None, {"began": "soon", "ms": float("nan"), "time": 7.0})
    found.event("compiled", graph="g0", seconds="long")
    found.event("captured", seconds=None)
    found.event("captured", seconds=10**400)
    written = read_run(tmp_path)
    assert [(s.name, s.began, s.seconds) for s in spans(written) if s.name == "fold"] == [
        ("fold", 7.0, 0.0)
    ]
    json.loads(json.dumps(chrome_trace([written])), parse_constant=lambda text: 1 / 0)
