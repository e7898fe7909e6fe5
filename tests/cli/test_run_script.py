"""`deepcompile run -- CMD`: a program as it is, compiled by us and recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run

PROGRAM = """
import sys
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
compiled = torch.compile(model, options={"shape_padding": True})
print("result", compiled(torch.ones(2, 8)).shape)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    return str(tmp_path / "program.py")


def test_a_program_is_compiled_and_recorded(program: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "deepcompile",
        "run",
        "--json",
        "--out",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run(
        [*command, "--", sys.executable, program, "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.OK, done.stderr
    found = json.loads(done.stdout)
    (recorded,) = found["runs"]
    assert found["status"] == 0
    assert (recorded["status"], recorded["kernels"], recorded["fallbacks"]) == ("ok", 1, 0)
    assert "result torch.Size([2, 8])" in done.stderr
    assert "shape_padding" in done.stderr  # an option of Inductor, dropped with a note


def test_a_program_that_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = ["run", "--out", str(tmp_path / "runs"), "--"]
    assert run([*out, sys.executable, "-c", "raise SystemExit(7)"]) is Exit.MODEL_FAILED
    shown = capfd.readouterr()
    assert "ended with status 7" in shown.err
    assert "nothing was compiled" in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--"], "a command is missing"),
        (["--", "no-such-command-anywhere"], "cannot be started"),
        (["--repeat", "3", "--", "true"], "--repeat is of a MODEL"),
    ],
)
def test_bad_usage(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", "--out", str(tmp_path), *arguments]) is Exit.USAGE
    assert message in capsys.readouterr().err
