"""Without a usable C++ compiler models run in eager, right; and code that is too long for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepcompile.backend import Recording, recording
from deepcompile.codegen import cpp_program
from deepcompile.errors import CompilerMissing
from deepcompile.runtime import build

MODEL = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
from deepcompile import backend

def f(x, w):
    return torch.nn.functional.layer_norm(x * w, (33,)).softmax(-1).square().sum()

def g(x):
    return (x + 1).tanh()

torch.manual_seed(0)
x, w = torch.randn(8, 33), torch.randn(33, requires_grad=True)
with warnings.catch_warnings(record=True) as caught, backend.recording() as record:
    warnings.simplefilter("always")
    found = torch.compile(f, backend="deepep")(x, w)
    found.backward()
    other = torch.compile(g, backend="deepep")(x)
    again = torch.compile(g, backend="deepep", dynamic=True)(x[:, :5])
grad, w.grad = w.grad, None
expected = f(x, w)
expected.backward()
torch.testing.assert_close(found, expected)
torch.testing.assert_close(grad, w.grad)
torch.testing.assert_close(other, g(x))
torch.testing.assert_close(again, g(x[:, :5]))
ours = [str(w.message) for w in caught if "deepcompile" in str(w.message)]
print(len(ours), "warnings", *ours)
print({graph.fallback is None for graph in record.graphs}, len(record.graphs), "graphs")
"""


def run(tmp_path: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    environment |= {"DEEPCOMPILE_CACHE_DIR": str(tmp_path / "cache"), **variables}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", MODEL, root],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_no_compiler_at_all(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    text = run(tmp_path, PATH=str(tmp_path / "bin"))
    assert "1 warnings" in text
    assert "no working C++ compiler" in text
    assert "{False} 4 graphs" in text


@pytest.mark.slow
def test_a_compiler_that_always_fails(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: license expired' >&2\nexit 3\n")
    broken.chmod(0o755)
    assert "{False} 4 graphs" in run(tmp_path, CXX=str(broken))


@pytest.mark.slow
def test_a_file_that_is_no_program(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    assert "{False} 4 graphs" in run(tmp_path, CXX=str(broken))


@pytest.mark.skipif(shutil.which("env") is None, reason="needs env")
@pytest.mark.slow
def test_a_compiler_behind_a_launcher(tmp_path: Path):
    """`CXX="ccache g++"` is two words."""
    assert "{True} 4 graphs" in run(tmp_path, CXX="env g++")


@pytest.mark.parametrize("value", ["", " ", "no-such-compiler"])
def test_a_variable_that_names_nothing(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("CXX", value)
    build.find_compiler.cache_clear()
    try:
        assert shutil.which(build.find_compiler()[0])
        monkeypatch.setenv("PATH", "")
        build.find_compiler.cache_clear()
        with pytest.raises(CompilerMissing, match=r"g\+\+"):
            build.find_compiler()
    finally:
        build.find_compiler.cache_clear()


class TestLongKernels:
    """Code that would keep the C++ compiler busy for minutes."""

    @staticmethod
    def run() -> tuple[Recording, Tensor, Tensor]:
        torch._dynamo.reset()
        x = torch.randn(30, 40)
        with recording() as record:
            found = torch.compile(_function, backend="deepep", options={"cache": False})(x)
        return record, found, _function(x)

    def test_is_built_with_less_optimisation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        commands: list[tuple[str, ...]] = []
        compile_ = build._compile
        monkeypatch.setattr(
            build, "_compile", lambda *args: commands.append(args[0]) or compile_(*args)
        )
        monkeypatch.setattr(cpp_program, "LONG_KERNEL", 10)
        record, found, expected = self.run()
        torch.testing.assert_close(found, expected)
        assert commands[0][-1] == "-O1"
        assert record.graphs[0].fallback is None

    def test_is_not_built_beyond_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpp_program, "LONGEST_KERNEL", 10)
        record, found, expected = self.run()
        torch.testing.assert_close(found, expected)
        assert "characters of C++" in str(record.graphs[0].fallback)

    def test_a_compiler_that_takes_too_long_is_stopped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(build, "LONGEST_BUILD", 0.001)
        record, found, expected = self.run()
        torch.testing.assert_close(found, expected)
        assert "more than" in str(record.graphs[0].fallback)


def _function(x: Tensor) -> Tensor:
    return torch.softmax(x * 2, -1) + x.sum(0)
