"""A package of somebody else adds a pass: found by its entry point, listed, run, verified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "third_party_pass"
LISTED = """
import contextlib, io, json, sys
from deepcompile.cli.main import run
def answer(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(["passes", *words, "--json"])
    return json.loads(out.getvalue())
listed = [p["name"] for p in answer("list")["passes"]]
shown = answer("show", "fold-idempotent")["pass"]
print(json.dumps({"listed": listed, "shown": shown, "torch": "torch" in sys.modules}))
"""
COMPILED = """
import json, torch
from deepcompile.backend import recording
def function(x):
    held = torch.abs(torch.abs(x))
    return torch.relu(torch.relu(torch.relu(x))) * 2 + torch.floor(torch.floor(x)), held
pipeline = "joint(canonicalise),graph(canonicalise,fold-idempotent{options},fuse-rows)"
options = {{"passes": pipeline, "verify": True, "strict": True, "cache": False, "run_dir": "runs"}}
x = torch.tensor([-1.5, 0.0, 2.5, float("nan")])
with recording() as record:
    compiled = torch.compile(function, backend="deepep", options=options)(x)
torch.testing.assert_close(compiled, function(x), equal_nan=True)
print(json.dumps([fields["pass"] for event, fields in record.events if event == "verified"]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed package; a build leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("third-party")
    shutil.copytree(PACKAGE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


def python(code: str, installed: Path, cwd: Path) -> str:
    path = os.pathsep.join([str(installed), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_is_listed_by_its_name_without_torch(installed: Path, tmp_path: Path) -> None:
    found = json.loads(python(LISTED, installed, tmp_path))
    assert found["listed"][-1] == "fold-idempotent"
    described = found["shown"]
    assert described["summary"] == "Apply ops like relu once where they are applied twice in a row."
    assert described["options"] == [{"name": "rounding", "type": "bool", "default": True}]
    assert found["torch"] is False


@pytest.mark.parametrize(("options", "folded"), [
    ("", 3), pytest.param("{rounding=false}", 2, marks=pytest.mark.slow),
])  # fmt: skip
def test_it_runs_where_the_pipeline_names_it(
    options: str, folded: int, installed: Path, tmp_path: Path
) -> None:
    verified = json.loads(python(COMPILED.format(options=options), installed, tmp_path))
    assert "fold-idempotent" in verified
    (state,) = (tmp_path / "runs").glob("*/graphs/*/*_fold-idempotent.json")
    meta = json.loads(state.read_text())
    assert meta["status"] == "changed"
    assert meta["stats"] == {"apply-once": folded}
    # The second abs is an output of the graph: it stays.
    assert "aten.abs" not in "".join(meta["op_delta"])
