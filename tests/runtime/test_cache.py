"""The kernel cache helps or steps aside: damaged, full, read-only or shared, results are right."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcompile import backend
from deepcompile.options import Options
from deepcompile.runtime import build as building

SOURCE = 'extern "C" int answer() { return %d; }'


@pytest.fixture(autouse=True)
def _each_test_is_warned() -> None:
    building._warn_once.cache_clear()


class Notes:
    """Collects events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append(event)


def answer(options: Options, number: int = 42, notes: Notes | None = None) -> building.Library:
    library = building.build(SOURCE % number, options, notes or Notes())
    assert library.handle.answer() == number
    return library


def kernels(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.so"))


def test_the_second_build_is_found(tmp_path: Path):
    options = Options(cache_dir=str(tmp_path))
    assert not answer(options).cached
    assert answer(options).cached
    assert not answer(options, 43).cached
    assert len(kernels(tmp_path)) == 2


def test_without_cache_nothing_is_kept(tmp_path: Path):
    options = Options(cache_dir=str(tmp_path), cache=False)
    answer(options)
    assert not answer(options).cached
    assert not kernels(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "text", "directory"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str):
    options = Options(cache_dir=str(tmp_path))
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from deepcompile.options import Options
from deepcompile.runtime import build
build.build({SOURCE % 42!r}, Options(cache_dir={str(tmp_path)!r}), lambda *a, **k: None)
"""
    # By another process: one that has loaded a file must never see it change.
    subprocess.run([sys.executable, "-c", code], check=True)
    (entry,) = kernels(tmp_path)
    data = entry.read_bytes()
    if damage == "directory":
        entry.unlink()
        entry.mkdir()
    else:
        entry.write_bytes(
            {
                "truncated": data[: len(data) // 2],
                "empty": b"",
                "flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:],
                "text": b"not a library",
            }[damage]
        )
    notes = Notes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not answer(options, notes=notes).cached
    assert notes.events
    if damage != "directory":
        assert answer(options).cached


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    options = Options(cache_dir=str(tmp_path / "file" / "cache"))
    notes = Notes()
    with pytest.warns(UserWarning, match="cache cannot be used"):
        assert not answer(options, notes=notes).cached
    assert notes.events == ["cache-unusable"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(options)


def failing(monkeypatch: pytest.MonkeyPatch, method: str, code: int) -> None:
    """Make a method of Path fail below folders named `kernels`."""
    original = getattr(Path, method)

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if "kernels" in self.parts:
            raise OSError(code, os.strerror(code), str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, method, fail)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    """A full disk or a read-only file system: not even removing the partial file works."""
    failing(monkeypatch, "write_bytes", code)
    failing(monkeypatch, "unlink", code)
    options = Options(cache_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="cache cannot be used"):
        assert not answer(options).cached
    assert not kernels(tmp_path)


def test_a_read_only_cache_still_gives_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = Options(cache_dir=str(tmp_path))
    answer(options)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "utime", refuse)
    assert answer(options).cached


def test_a_cap_smaller_than_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "TRIM_EVERY", 1)
    options = Options(cache_dir=str(tmp_path), cache_size=100)
    answer(options, 1)
    assert not kernels(tmp_path)


def test_the_cap_drops_what_was_used_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "TRIM_EVERY", 1)
    roomy = Options(cache_dir=str(tmp_path))
    for number in (1, 2, 3):
        answer(roomy, number)
    size = kernels(tmp_path)[0].stat().st_size
    for age, path in enumerate(sorted(kernels(tmp_path), key=lambda p: p.stat().st_mtime)):
        os.utime(path, (1000 + age, 1000 + age))
    assert answer(roomy, 1).cached  # used now
    tight = Options(cache_dir=str(tmp_path), cache_size=int(3.5 * size))
    answer(tight, 4)
    assert len(kernels(tmp_path)) == 3
    assert answer(tight, 1).cached
    assert answer(tight, 4).cached
    assert not answer(roomy, 2).cached


def test_partial_files_of_a_killed_process_count_and_go(tmp_path: Path):
    from deepcompile.cache_dir import cache_dir, total_size, trim

    options = Options(cache_dir=str(tmp_path))
    answer(options)
    folder = cache_dir(options)
    leftover = folder / "0123.77.88.partial"
    leftover.write_bytes(b"x" * 5000)
    os.utime(leftover, (1000, 1000))
    trim(folder, total_size(folder) - 1)
    assert not leftover.exists()
    assert answer(options).cached


MODEL = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from deepcompile import backend
torch.manual_seed(0)
x, w = torch.randn(64, 33), torch.randn(33, requires_grad=True)
def f(x, w):
    return torch.nn.functional.layer_norm(x * w, (33,)).softmax(-1).square().sum()
while time.time() < float(sys.argv[3]):
    pass
with backend.recording() as record:
    found = torch.compile(f, backend="deepep", options={"cache_dir": sys.argv[2]})(x, w)
    found.backward()
g, w.grad = w.grad, None
expected = f(x, w)
expected.backward()
torch.testing.assert_close(found, expected)
torch.testing.assert_close(g, w.grad)
assert [graph.fallback for graph in record.graphs] == [None, None]
print("cached", [graph.cached for graph in record.graphs])
"""


@pytest.mark.slow
def test_processes_that_compile_the_same_model_at_once(tmp_path: Path):
    import time

    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", MODEL, root, str(tmp_path), str(time.time() + 8)]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        text, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0, text
    assert len(kernels(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.partial"))
    command[-1] = "0"
    last = subprocess.run(command, capture_output=True, text=True)
    assert "cached [True, True]" in last.stdout, last.stderr


def test_a_model_finds_its_kernels_again(tmp_path: Path):
    def f(x: torch.Tensor) -> torch.Tensor:
        return (x * 3).softmax(-1)

    x = torch.randn(5, 40)
    hits = []
    for _ in range(2):
        torch._dynamo.reset()
        with backend.recording() as record:
            compiled = torch.compile(f, backend="deepep", options={"cache_dir": str(tmp_path)})
            torch.testing.assert_close(compiled(x), f(x))
        hits += [graph.cached for graph in record.graphs]
    assert hits == [False, True]
