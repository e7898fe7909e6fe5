"""Every `torch.compile` of a child goes to deepcompile; shown with a torch that only records."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deepcompile.child.environment import child_environment
from deepcompile.child.redirect import deepep, redirected

FAKE_TORCH = """
import json, os
def compile(model=None, *, backend="inductor", mode=None, options=None, dynamic=None):
    if model is None:
        return lambda m: compile(m, backend=backend, mode=mode, options=options, dynamic=dynamic)
    name = backend if isinstance(backend, str) else f"{backend.__module__}.{backend.__name__}"
    print(json.dumps([name, mode, options, dynamic]))
    return model
class Module:
    def compile(self, **kwargs):
        import torch
        torch.compile(self, **kwargs)
"""
OURS = "deepcompile.child.redirect.deepep"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(FAKE_TORCH)
    return tmp_path


def run(
    folder: Path,
    text: str,
    options: Mapping[str, str] = {},
    *words: str,
) -> tuple[list[Any], str]:
    (folder / "script.py").write_text(text)
    environ = child_environment(options, {"PATH": "/usr/bin", "PYTHONPATH": str(folder)})
    command = [sys.executable, *(words or [str(folder / "script.py")])]
    done = subprocess.run(
        command, env=environ, cwd=folder, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_all_forms(folder: Path) -> None:
    text = (
        "import torch\n"
        "from torch import compile as c\n"
        "torch.compile(print)\n"
        "torch.compile(print, backend='inductor', mode='reduce-overhead', dynamic=True)\n"
        "@torch.compile\n"
        "def f(): ...\n"
        "@c(backend='inductor')\n"
        "def g(): ...\n"
        "torch.Module().compile()\n"
        "torch.compile(print, backend='deepep', options={'verify': True})\n"
    )
    calls, said = run(folder, text)
    assert [call[0] for call in calls] == [OURS] * 6
    assert calls[1] == [OURS, "reduce-overhead", None, True]
    assert calls[5][2] == {"verify": True}
    assert not said


def test_modules_and_other_processes(folder: Path) -> None:
    text = (
        "import sys, subprocess\n"
        "if len(sys.argv) > 1:\n"
        "    import torch; torch.compile(print)\n"
        "else:\n"
        "    subprocess.run([sys.executable, '-m', 'script', 'again'], check=True)\n"
    )
    assert run(folder, text, {}, "-m", "script")[0] == [[OURS, None, None, None]]


def test_the_sitecustomize_that_was_there_runs_too(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("import builtins; builtins.before = 'here'")
    calls, _ = run(folder, "import torch\ntorch.compile(print, mode=before)")
    assert calls[0][0] == OURS
    assert run(folder, "print(1)\nassert before == 'here'")[0] == [1]


def test_without_the_compiler(folder: Path) -> None:
    text = "import torch\ntorch.compile(print, mode='max-autotune')"
    calls, _ = run(folder, text, {"DEEPCOMPILE_CHILD_BACKEND": "eager"})
    assert calls == [["eager", None, None, None]]


def test_calls_are_reported(folder: Path) -> None:
    (folder / "said").mkdir()
    text = "import torch\ntorch.compile(print)\nraise ValueError('no 7')"
    with pytest.raises(subprocess.CalledProcessError):
        run(folder, text, {"DEEPCOMPILE_CHILD_REPORT": str(folder / "said")})
    (file,) = (folder / "said").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["compile", "exception"]
    assert (lines[1]["what"], lines[1]["detail"]) == ("ValueError", "no 7")


def test_options_of_inductor_are_mapped_or_named() -> None:
    notes: list[str] = []
    options = {"max_autotune": True, "triton.cudagraphs": False, "epilogue_fusion": True}
    found = redirected({"options": options, "fullgraph": True}, notes.append)
    assert found == {
        "options": {"tune": "measure"}, "fullgraph": True, "backend": deepep, "mode": None
    }  # fmt: skip
    assert len(notes) == 2
    assert any("epilogue_fusion" in text and "left out" in text for text in notes)


def test_unknown_modes_and_other_backends() -> None:
    notes: list[str] = []
    assert redirected({"mode": "fastest"}, notes.append)["mode"] is None
    assert redirected({"backend": "openxla"}, notes.append)["backend"] is deepep
    assert redirected({"backend": print}, notes.append) == {"backend": print}
    assert len(notes) == 3


def test_environment_sets_and_unsets() -> None:
    before = {"PYTHONPATH": "/a", "DEEPCOMPILE_STRICT": "1"}
    found = child_environment({"opt_limit": "3", "strict": ""}, before)
    assert found["DEEPCOMPILE_OPT_LIMIT"] == "3"
    assert "DEEPCOMPILE_STRICT" not in found
    assert found["PYTHONPATH"].split(":")[1] == "/a"
    assert child_environment({}, found)["PYTHONPATH"] == found["PYTHONPATH"]
    assert "site" not in child_environment({}, before, redirect=False)["PYTHONPATH"]
