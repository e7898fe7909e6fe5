"""What the README shows of `parallelize` works as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run

pytestmark = pytest.mark.distributed

README = Path(__file__).parents[2] / "README.md"


def section() -> str:
    text = README.read_text(encoding="utf-8")
    return text[text.index("## Many GPUs: parallelize") :].partition("\n## ")[0]


def shell_lines() -> list[list[str]]:
    """Commands of the shell blocks as arguments, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", section(), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_commands_and_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (script,) = re.findall(r"```python\n# train.py\n(.*?)```", section(), re.DOTALL)
    Path("train.py").write_text(script)
    ran = []
    for words in shell_lines():
        if words[0] == "torchrun":
            continue  # once is enough: with the variable below
        if "torchrun" in words:
            ran.append(with_torchrun(words))
            continue
        assert words[0] == "deepcompile"
        expected = Exit.NO if "--diff" in words else Exit.OK
        assert run(words[1:]) is expected, words
        ran.append(capsys.readouterr().out)
    assert "layers.*.up.weight    S(0)" in ran[0]
    assert ran[1].partition("\n")[2] == ran[0]
    assert "layers.3.up.weight (256 x 64) lies as S(0) on tp=2" in ran[2]
    assert Path("plan.svg").read_text().startswith("<svg")
    assert "layers.*.up.weight: S(0) -> R  x4" in ran[5]
    losses = [float(text) for text in re.findall(r"step \d loss (\S+)", ran[6])]
    assert len(losses) == 3
    assert "the plan of the model on tp=2" in ran[7]
    assert "graph g0_joint on tp=2" in ran[7]
    assert "parameters lie as in the plan of the model" in ran[7]


def with_torchrun(words: list[str]) -> str:
    """What a line prints that sets variables and starts torchrun."""
    at = words.index("torchrun")
    variables = dict(word.split("=", 1) for word in words[:at])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[at + 1 :]]
    done = subprocess.run(
        command,
        env={**os.environ, **variables, "PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
