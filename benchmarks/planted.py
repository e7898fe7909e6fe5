"""Ten planted bugs: what `bisect` and `minify` make of each, and how long they take.

The bugs are in `tests/planted`; they get into children by a `sitecustomize` of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._measure import Check, Measurement, Plan, SuiteResult

ROOT = Path(__file__).parents[1]
PLANTED = ROOT / "tests" / "planted"
LIMIT = 300.0
OPERATIONS = 15


@dataclass(frozen=True)
class Bug:
    """A planted bug.

    Attributes:
        target: the rest of the command line: a model of `models.py`, or a job.
        level, name, where: what `bisect` is to find: at this level this name, and text in where.
    """

    name: str
    target: tuple[str, ...]
    level: str
    culprit: str
    where: str = ""
    minify: bool = True


def _model(name: str, *options: str) -> tuple[str, ...]:
    return (f"{PLANTED / 'models.py'}:{name}", *options)


_TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
_JOB = ("--", *_TORCHRUN, str(PLANTED / "job.py"))
BUGS = (
    Bug("wrong-constant", _model("block", "--fail", "numerics"), "pass", "canonicalise", "joint"),
    Bug("dropped-cast", _model("rounding_mlp", "--fail", "numerics"), "rewrite", "merge-casts"),
    Bug(
        "wrong-reduction-identity", _model("conv", "--fail", "numerics"),
        "kernel", "k3", "amax.default",
    ),
    Bug("bad-recompute", _model("mlp", "--fail", "numerics"), "pass", "recompute"),
    Bug("missing-collective", _JOB, "pass", "partition", minify=False),
    Bug("aliasing-error", _model("counting", "--fail", "numerics"), "pass", "canonicalise"),
    Bug("slow-kernel", _model("block", "--fail", "slow"), "kernel", "k2", "exp.default"),
    Bug("crash-in-lowering", _model("block", "--fail", "crash"), "pass", "fuse-rows", "forward"),
    Bug("crash-at-run-time", _model("block", "--fail", "crash"), "kernel", "k2", "exp.default"),
    Bug(
        "nan-for-one-shape", _model("block_of_24", "--fail", "numerics", "--dynamic"),
        "kernel", "k2", "exp.default",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """One command: the document that it printed, its status, seconds, what it said on stderr."""

    document: Mapping[str, Any]
    status: int
    seconds: float
    said: str


def command(bug: Bug, *arguments: str, cwd: str | None = None) -> Ran:
    """`deepcompile ... --json` with a bug in every process that compiles."""
    path = os.pathsep.join([str(PLANTED / "site"), str(ROOT)])
    environ = {**os.environ, "DEEPCOMPILE_TEST_BUG": bug.name, "PYTHONPATH": path}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "deepcompile", *arguments],
        env=environ, cwd=cwd or ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    document = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return Ran(document, done.returncode, seconds, done.stdout + done.stderr)


def bisected(bug: Bug, *options: str) -> tuple[Ran, bool]:
    """`bisect` of a bug, and whether it named the right pass or kernel."""
    ran = command(bug, "bisect", "--json", *options, *bug.target)
    return ran, is_right(bug, ran.document.get("levels", ()))


def is_right(bug: Bug, levels: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the level that is to name the culprit names it."""
    found = next((row for row in levels if row["level"] == bug.level), None)
    return found is not None and found["name"] == bug.culprit and bug.where in found["where"]


def minified(bug: Bug, folder: str, *options: str) -> Ran:
    """`minify` of a bug; its script is `repro.py` in the folder."""
    script = str(Path(folder) / "repro.py")
    return command(bug, "minify", "--json", "-o", script, *options, *bug.target)


def run(plan: Plan) -> SuiteResult:
    """All ten; two of them with a quick plan."""
    bugs = BUGS if not plan.quick else (BUGS[1], BUGS[5])
    measurements, details = [], {}
    right = small = 0
    slowest = 0.0
    for bug in bugs:
        ran, named = bisected(bug)
        right += named
        slowest = max(slowest, ran.seconds)
        measurements.append(Measurement(f"{bug.name}/bisect", ran.seconds, "s"))
        detail: dict[str, Any] = {"right": named, "bisect": ran.document or ran.said[-2000:]}
        if bug.minify:
            with tempfile.TemporaryDirectory() as folder:
                ran = minified(bug, folder)
                script = Path(folder) / "repro.py"
                detail["script"] = script.read_text() if script.is_file() else None
            slowest = max(slowest, ran.seconds)
            measurements.append(Measurement(f"{bug.name}/minify", ran.seconds, "s"))
            operations = ran.document.get("operations", 0)
            same = bool(ran.document.get("reproduced"))
            small += same and operations <= OPERATIONS
            measurements.append(Measurement(f"{bug.name}/operations", operations, "operations"))
            detail["minify"] = ran.document or ran.said[-2000:]
        # Paths below the tree: those of this machine tell nobody anything.
        details[bug.name] = json.loads(json.dumps(detail).replace(f"{ROOT}/", ""))
    wanted = 8 if not plan.quick else len(bugs)
    checks = (
        Check("right pass or kernel", right, ">=", len(bugs)),
        Check(f"scripts of at most {OPERATIONS} operations", small, ">=", wanted),
        Check("slowest command, seconds", slowest, "<", LIMIT),
    )
    return SuiteResult("planted", tuple(measurements), checks, (), details)
