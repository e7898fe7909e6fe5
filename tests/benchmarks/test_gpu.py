"""The GPU benchmark's own logic, on a CPU: tiny sizes, and contenders that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.contenders import Prepared, difference
from benchmarks.gpu.harness import Case, DeviceBroken, Session
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.report import Report
from benchmarks.gpu.row_ops import DROPOUT, dropout_error
from benchmarks.gpu.timing import Timed

ROOT = Path(__file__).parents[2]
SUITES = {"launch", "optimizer", "training", "inference", "rows"}


@pytest.mark.slow
def test_a_smoke_run_writes_every_suite(tmp_path: Path) -> None:
    output = tmp_path / "smoke.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.gpu", "--cpu-smoke", "--quick",
            "--contender", "eager", "--contender", "deepep", "--contender", "fused",
            "-o", str(output),
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    metadata = report["metadata"]
    assert {"commit", "date", "device", "threads", "quick", "packages"} <= metadata.keys()
    assert metadata["cpu_smoke"] is True
    assert {"torch", "triton", "deepcompile"} <= metadata["packages"].keys()
    assert not output.with_suffix(".running").exists()
    assert report["suites"].keys() == SUITES
    for suite in report["suites"].values():
        assert suite["complete"]
        assert suite["done"]
        assert suite["skipped"] == []
        ours = [entry for entry in suite["measurements"] if entry["contender"] == "deepep"]
        assert ours
        for entry in suite["measurements"]:
            assert entry["value"] > 0, entry
            assert entry["unit"] in ("s", "%", "B", "")
    rows = report["suites"]["rows"]["measurements"]
    metrics = {entry["metric"] for entry in rows if entry["contender"] == "deepep"}
    assert metrics == {
        "forward", "backward", "forward % of clone", "backward % of clone",
    }  # fmt: skip
    assert "rows" in output.with_suffix(".txt").read_text()


def _session(path: Path | None, folder: Path, *, resume: bool = False) -> Session:
    plan = Plan(torch.device("cpu"), smoke=True)
    return Session(plan, Report({}, path, resume=resume), folder)


def _case(name: str, **contenders: Callable[[], Prepared]) -> Case:
    return Case(name, lambda: contenders, rounds=2)


def _good() -> Prepared:
    return Prepared({"call": Timed(lambda _: None)})


def _raises(message: str = "no") -> Any:
    raise ValueError(message)


def _fails_when_timed() -> Prepared:
    return Prepared({"call": Timed(lambda _: _raises())})


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "DEEPCOMPILE_CACHE_DIR"):
        monkeypatch.setenv(variable, "")  # and put back afterwards what there was


def _measured(session: Session, suite: str) -> set[str]:
    return {entry["contender"] for entry in session.report.data["suites"][suite]["measurements"]}


@pytest.mark.slow
def test_a_failure_is_recorded_and_stops_nothing(tmp_path: Path) -> None:
    session = _session(None, tmp_path)
    suite = session.report.suite("suite")
    broken = _case("first", eager=_good, deepep=_raises, inductor=_fails_when_timed)
    wrong = _case("second", eager=_good, deepep=lambda: Prepared(_good().timed, wrong="by 3"))
    inputs = Case("third", _raises, rounds=1)
    session.run_suite(suite, [broken, wrong, inputs], time.time() + 60)
    assert _measured(session, "suite") == {"eager", "deepep"}
    found = [(entry["contender"], entry["kind"]) for entry in suite.data["failures"]]
    assert found == [
        ("deepep", "error"), ("inductor", "error"), ("deepep", "wrong"), ("inputs", "error"),
    ]  # fmt: skip
    assert session.report.ours_failed


def test_what_the_budget_leaves_out_is_named(tmp_path: Path) -> None:
    session = _session(None, tmp_path)
    suite = session.report.suite("suite")
    deadline = time.time() + 0.2
    slow = _case("slow", eager=lambda: time.sleep(0.3) or _good(), deepep=_good)
    session.run_suite(suite, [slow, _case("late", eager=_good)], deadline)
    skipped = [(entry["case"], entry["contender"]) for entry in suite.data["skipped"]]
    assert skipped == [("slow", "deepep"), ("late", None)]
    assert _measured(session, "suite") == {"eager"}
    assert suite.data["complete"] is False


@pytest.mark.slow
def test_a_broken_device_ends_the_process_and_the_next_leaves_the_culprit_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    cases = [_case("first", eager=_good), _case("second", eager=_good, deepep=_raises)]
    session = _session(path, tmp_path)
    monkeypatch.setattr(session.clock, "broken", lambda: True)
    with pytest.raises(DeviceBroken, match="second/deepep"):
        session.run_suite(session.report.suite("suite"), cases, time.time() + 60)

    again = _session(path, tmp_path, resume=True)
    suite = again.report.suite("suite")
    again.run_suite(suite, cases, time.time() + 60)
    assert [entry["contender"] for entry in suite.data["failures"]] == ["deepep"]
    assert suite.data["done"] == ["first", "second"]
    names = [entry["name"] for entry in suite.data["measurements"]]
    assert names == ["first/call/eager", "second/call/eager"]


def test_what_never_came_back_is_left_out_when_resumed(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    killed = Report({}, path)
    killed.suite("suite")
    killed.write()
    killed.running("suite/first/deepep")
    session = _session(path, tmp_path, resume=True)
    suite = session.report.suite("suite")
    session.run_suite(suite, [_case("first", eager=_good, deepep=_good)], time.time() + 60)
    assert _measured(session, "suite") == {"eager"}
    assert [entry["error"] for entry in suite.data["failures"]] == ["the process ended here"]


def test_differences_beyond_rounding_are_found() -> None:
    expected = [torch.randn(100), torch.zeros(3)]
    rounded = [tensor.to(torch.bfloat16) for tensor in expected]
    names = ["a", "b"]
    assert difference(rounded, expected, names, tolerance=2e-2) is None
    off = [expected[0] * 1.1, expected[1]]
    assert "a: error" in str(difference(off, expected, names, tolerance=2e-2))
    nan = [expected[0], torch.full((3,), torch.nan)]
    assert "b: 3 numbers" in str(difference(nan, expected, names, tolerance=2e-2))
    noise = [expected[0], torch.full((3,), 1e-3)]
    assert "b: error" in str(difference(noise, expected, names, tolerance=2e-2))
    assert difference(noise, expected, names, tolerance=2e-2, floor=1e-2) is None


def test_dropout_must_use_one_mask_in_both_directions() -> None:
    torch.manual_seed(0)
    x, residual, upstream = (torch.randn(200, 100) for _ in range(3))
    mask = (torch.rand(200, 100) > DROPOUT) / (1 - DROPOUT)
    other = (torch.rand(200, 100) > DROPOUT) / (1 - DROPOUT)
    output = x * mask + residual
    assert dropout_error((x, residual), output, upstream * mask, upstream) is None
    assert dropout_error((x, residual), output, upstream * other, upstream) is not None
    assert dropout_error((x, residual), x + residual, upstream, upstream) is not None
