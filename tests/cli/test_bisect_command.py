"""`deepcompile bisect -- CMD` with commands that only write what a compile would, and real bugs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planted import BUGS, OPERATIONS, PLANTED, Bug, bisected, minified

# A torch that compiles nothing, and a job that records four passes and fails from one of them on.
JOB = """
import os, sys
sys.path.insert(0, {folder!r})
import torch
from deepcompile.pipeline.rundir import RunDir
torch.compile(print)
if os.environ.get("DEEPCOMPILE_CHILD_BACKEND") == "eager":
    sys.exit({eager})
limit = int(os.environ.get("DEEPCOMPILE_OPT_LIMIT", 9))
run = RunDir.create(os.environ["DEEPCOMPILE_RUN_DIR"])
run.graph_state("g0", 0, "input", "graph 0")
for number in range(1, min(limit, 6) + 1):
    meta = {{"number": number, "changed": True}}
    run.graph_state("g0", number, f"pass-{{number}}", f"graph {{number}}", meta)
run.finish()
if limit in {skip}:
    sys.exit(125)
if limit in {bad}:
    {fail}
"""


@pytest.fixture
def job(tmp_path: Path) -> Any:
    (tmp_path / "torch.py").write_text("def compile(model=None, **kwargs): return model\n")

    def make(
        bad: set[int],
        *,
        skip: set[int] = frozenset(),
        eager: int = 0,
        fail: str = "sys.exit(3)",  # type: ignore[assignment]
    ) -> list[str]:
        fields = {"folder": str(tmp_path), "bad": {*bad, 10**9}, "skip": skip or "()"}
        text = JOB.format(**fields, eager=eager, fail=fail)
        (tmp_path / "job.py").write_text(text)
        return ["--", sys.executable, str(tmp_path / "job.py")]

    return make


def bisect(*arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "deepcompile", "bisect", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_pass_is_named_and_both_commands_shown(job: Any, tmp_path: Path) -> None:
    status, found, said = bisect("--level", "pass", *job({4, 5, 6}))
    assert status == 0
    (level,) = found["levels"]
    assert (level["name"], level["where"], level["number"]) == ("pass-4", "g0", 4)
    assert level["search"]["monotone"]
    for line, wanted in ((found["last_good"], 0), (found["first_bad"], 3)):
        done = subprocess.run(
            f"DEEPCOMPILE_RUN_DIR={tmp_path / 'runs'} {line}", shell=True, check=False
        )
        assert done.returncode == wanted, line
    assert "opt_limit=3: good" in said


def test_good_and_bad_must_be_there(job: Any) -> None:
    status, found, _ = bisect(*job({4}, eager=1))
    assert (status, found["reproduced"]) == (1, False)
    assert "without the compiler it fails too" in found["reason"]
    status, found, _ = bisect("--fail", "crash", *job(set()))
    assert status == 1
    assert "no failure of kind 'crash'" in found["reason"]
    status, found, _ = bisect("--", sys.executable, "-c", "print(1)")
    assert "no torch.compile was called" in found["reason"]


def test_what_fails_without_passes_is_no_pass(job: Any) -> None:
    status, found, _ = bisect("--level", "pass", *job({0, 1, 2, 3, 4, 5, 6}))
    assert status == 1
    assert found["levels"][0]["name"] is None
    assert "every pass left out" in found["levels"][0]["note"]


def test_turns_and_skips_are_told(job: Any) -> None:
    _, found, _ = bisect("--level", "pass", *job({2, 5, 6}))
    search = found["levels"][0]["search"]
    assert not search["monotone"]
    _, found, _ = bisect("--level", "pass", *job({5, 6}, skip={4}))
    level = found["levels"][0]
    assert not level["search"]["exact"]
    assert "pass-4 on g0" in level["note"]


def test_another_crash_tells_nothing(job: Any) -> None:
    fail = "raise ValueError('the one') if limit > 3 else KeyError('another')"
    status, found, _ = bisect("--fail", "crash", "--level", "pass", *job({3, 4, 5, 6}, fail=fail))
    assert status == 0
    assert found["failure"]["what"] == "ValueError"
    assert found["levels"][0]["number"] == 4
    assert any("KeyError" in text for text in found["other_failures"])


def test_ranges_and_graphs(job: Any) -> None:
    _, found, _ = bisect("--level", "pass", "--range", "2:5", *job({4, 5, 6}))
    assert found["levels"][0]["number"] == 4
    _, found, _ = bisect("--graph", "g7", *job({4, 5, 6}))
    assert "there are g0" in found["reason"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--range", "5:2", "m.py:f"], "--range"),
        (["--", "no-such-command"], "cannot be started"),
        ([], "Missing argument"),
        (["--fail", "sometimes", "m.py:f"], "sometimes"),
    ],
)
def test_bad_usage(words: list[str], text: str) -> None:
    command = [sys.executable, "-m", "deepcompile", "bisect", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert text in done.stderr


TINY = Bug(
    "crash-in-lowering", (f"{PLANTED / 'models.py'}:tiny", "--fail", "crash"), "pass", "fuse-rows"
)


@pytest.mark.slow
def test_a_planted_bug_is_found() -> None:
    ran, right = bisected(TINY, "--level", "pass")
    assert right, ran.said
    assert ran.document["confirmed"]


@pytest.mark.slow
def test_a_planted_bug_becomes_a_small_script(tmp_path: Path) -> None:
    ran = minified(TINY, str(tmp_path), "--no-isolate")
    assert ran.status == 0, ran.said
    assert ran.document["operations"] == 1
    assert "gelu" in (tmp_path / "repro.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_all_planted_bugs_are_found(bug: Bug) -> None:
    ran, right = bisected(bug)
    assert right, ran.said
    assert ran.document["confirmed"] in (True, None)


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.minify], ids=lambda bug: bug.name)
def test_all_planted_bugs_become_small_scripts(bug: Bug, tmp_path: Path) -> None:
    ran = minified(bug, str(tmp_path))
    assert ran.document.get("reproduced"), ran.said
    assert ran.document["operations"] <= OPERATIONS
