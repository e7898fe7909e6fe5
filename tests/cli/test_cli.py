"""The command line: output, JSON, exit statuses, and no torch where none is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from deepcompile import __version__
from deepcompile.cache_dir import cache_dir, make_cache_dir
from deepcompile.cli import doctor as doctor_module
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.cost.calibration import Machine, Measured
from deepcompile.options import Options
from deepcompile.pipeline import registry, spec
from deepcompile.pipeline.rundir import RunDir
from deepcompile.runtime import measured_rates
from deepcompile.runtime.build import find_compiler


@dataclass(frozen=True)
class Fold:
    """Folds things.

    Before and after follow here.
    """

    name: ClassVar[str] = "fold"
    phase: ClassVar[str] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset({"folded"})
    skippable: ClassVar[bool] = True

    max_ops: int = 64

    def run(self, graph, ctx): ...


@dataclass(frozen=True)
class Needed(Fold):
    """Must run."""

    name: ClassVar[str] = "needed"
    phase: ClassVar[str] = "joint"
    skippable: ClassVar[bool] = False


@pytest.fixture
def own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands under test with passes that do not change."""
    found = registry.Registry({"fold": f"{__name__}:Fold", "needed": f"{__name__}:Needed"})
    for module in ("deepcompile.cli.passes", "deepcompile.pipeline.spec"):
        __import__(module)
        monkeypatch.setattr(f"{module}.default_registry", lambda: found)
    monkeypatch.setattr(spec, "default_pipeline_text", lambda: "joint(needed),graph(fold)")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == Exit.OK
    assert capsys.readouterr().out == f"{__version__}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == Exit.OK
    assert "Look after the cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pases"], "unknown command 'pases'; did you mean 'passes'"),
        (["passes", "show", "fodl"], "unknown pass 'fodl'; did you mean 'fold'"),
        (["passes", "pipeline", "fold{max-op=1}"], "did you mean 'max-ops'"),
        (["runs", "show", "/no/such/place"], "is not a directory"),
        (["version", "--nope"], "No such option"),
    ],
)
@pytest.mark.usefixtures("own_passes")
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == Exit.USAGE
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("own_passes")
def test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["passes", "list"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["fold", "graph", "yes", "Folds", "things."]
    assert run(["passes", "list", "--json"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["command"]) == (1, "passes list")
    assert document["passes"][1]["skippable"] is False
    assert run(["passes", "show", "fold"]) == Exit.OK
    assert "Before and after follow here." in capsys.readouterr().out
    assert run(["passes", "pipeline"]) == Exit.OK
    assert capsys.readouterr().out == "joint(needed),graph(fold)\n"
    assert run(["passes", "pipeline", "fold{max-ops=64}"]) == Exit.OK
    assert capsys.readouterr().out == "joint(needed),graph(fold)\n"
    assert run(["passes", "pipeline", "--upto", "needed"]) == Exit.OK
    assert capsys.readouterr().out == "joint(needed),graph()\n"
    assert run(["passes", "pipeline", "--upto", "graph:needed"]) == Exit.USAGE
    assert "unknown pass of this pipeline: 'graph:needed'" in capsys.readouterr().err
    assert run(["passes", "pipeline", "--target", "cuda", "--json"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["target"], document["kernels"]) == ("cuda", "Triton")


def test_options_show_what_is_in_force(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPCOMPILE_VERIFY", "1")
    assert run(["options", "--json"]) == Exit.OK
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["options"]}
    assert rows["verify"]["value"] is True
    assert rows["verify"]["default"] is False
    monkeypatch.setenv("DEEPCOMPILE_THREADS", "no")
    assert run(["options"]) == Exit.USAGE
    assert "DEEPCOMPILE_THREADS = 'no'" in capsys.readouterr().err


def test_cache(capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
    assert run(["cache", "size", "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["bytes"] == 0
    make_cache_dir(own_cache)
    (own_cache / "abc.so").write_bytes(b"x" * 100)
    (own_cache / "abc.json").write_bytes(b"{}")
    (own_cache.parent / "not-ours").write_text("stays")
    assert run(["cache", "path"]) == Exit.OK
    assert capsys.readouterr().out == f"{own_cache}\n"
    assert run(["cache", "size"]) == Exit.OK
    assert capsys.readouterr().out == "102 B in 1 entries, at most 1 GiB\n"
    assert run(["cache", "clear"]) == Exit.OK
    assert sorted(p.name for p in own_cache.parent.rglob("*") if p.is_file()) == [
        "CACHEDIR.TAG",
        "not-ours",
    ]
    assert cache_dir(Options.resolve()) == own_cache


def test_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    recorded = RunDir.create(root, name="x", pipeline="graph(fold)")
    recorded.graph_state("g0", 0, "input", "graph {\n}", {"status": "input"})
    meta = {"status": "changed", "ms": 1.25, "op_delta": {"a": 1, "b": -2}}
    recorded.graph_state("g0", 1, "fold", "graph {\n}", meta)
    recorded.kernel("k0", {}, {"origins": ["m.py:3"], "ops": ["aten.add", "aten.add"]})
    recorded.event("fallback", origin="m.py:4", reason="no rule for aten.foo")
    recorded.finish()
    assert run(["runs", "list", str(root)]) == Exit.OK
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:5] == [recorded.path.name, "ok", "1", "1", "1"]
    assert run(["runs", "show", str(root)]) == Exit.OK
    text = capsys.readouterr().out
    for part in ("graph g0", "001  fold", "1.2 ms", "+1 -2", "m.py:3", "aten.add x2"):
        assert part in text
    assert "m.py:4: no rule for aten.foo" in text
    assert run(["runs", "show", str(recorded.path), "--json"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert document["kernel_list"][0]["origins"] == ["m.py:3"]
    (recorded.path / "run.json").write_text("broken")
    assert run(["runs", "list", str(root)]) == Exit.OK
    assert "unreadable" in capsys.readouterr().out
    assert run(["runs", "show", str(root)]) == Exit.OK
    shown = capsys.readouterr()
    assert "001  fold" in shown.out
    assert "run.json cannot be read" in shown.err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor_module._compiler()[0]
    assert found.ok, found.detail
    assert all(finding.ok for finding in doctor_module._links() + doctor_module._cache())
    monkeypatch.setenv("CXX", "/no/such/compiler")
    find_compiler.cache_clear()
    found = doctor_module._compiler()[0]
    assert found.ok
    assert "/no/such/compiler" in found.detail
    monkeypatch.setenv("PATH", "/nowhere")
    find_compiler.cache_clear()
    try:
        assert run(["doctor", "--json"]) == Exit.NO
    finally:
        find_compiler.cache_clear()
    document = json.loads(capsys.readouterr().out)
    wrong = [f["name"] for f in document["findings"] if f["ok"] is False]
    assert "C++ compiler" in wrong


def test_unwritable_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPCOMPILE_CACHE_DIR", str(tmp_path / "file"))
    (finding,) = doctor_module._cache()
    assert finding.ok is False
    assert "not writable" in finding.detail


class TestCalibration:
    """`doctor --calibrate` with numbers that are given, and what `doctor` says of the file."""

    @pytest.fixture(autouse=True)
    def _measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DEEPCOMPILE_RATES")
        flops = {"f32": 2e11, "bf16": 4e11}
        found = Measured(Machine("Some CPU", 2, "2.13.0"), "2026-01-31", 3e10, 1e-6, flops, {})
        monkeypatch.setattr(measured_rates, "measure_rates", lambda device: found)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def rates(self) -> doctor_module.Finding:
        (finding,) = doctor_module._rates()
        return finding

    def test_measures_and_keeps(self, capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
        assert "of the table" in self.rates().detail
        assert run(["doctor", "--calibrate"]) == Exit.OK
        printed = capsys.readouterr().out
        for part in ("measured on cpu", "f32 200 GFLOP/s (table", "a call 1 us (table 2)"):
            assert part in printed
        assert "Some CPU, 2 threads, torch 2.13.0 (2026-01-31)" in self.rates().detail
        assert run(["cache", "clear"]) == Exit.OK
        assert (own_cache.parent / "rates.json").is_file()

    def test_says_when_what_was_measured_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert run(["doctor", "--calibrate"]) == Exit.OK
        monkeypatch.setenv("DEEPCOMPILE_RATES", "table")
        assert "the option rates says so" in self.rates().detail

    def test_a_broken_file_is_wrong_and_stays(
        self, capsys: pytest.CaptureFixture[str], own_cache: Path
    ) -> None:
        own_cache.mkdir(parents=True)
        file = own_cache.parent / "rates.json"
        file.write_text("{")
        assert self.rates().ok is False
        assert run(["doctor", "--calibrate"]) == Exit.NO
        assert "delete it, and measure again" in capsys.readouterr().err
        assert file.read_text() == "{"


def test_a_bug_is_told_from_bad_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("deepcompile.cli.cache.entries", broken)
    assert run(["cache", "size"]) == Exit.BUG
    assert "This is a bug in deepcompile" in capsys.readouterr().err


def test_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepcompile.cli.cache.entries", interrupted)
    assert run(["cache", "size"]) == Exit.INTERRUPTED


COMMANDS = [
    ["version"],
    ["--help"],
    ["passes", "list"],
    ["passes", "pipeline"],
    ["options"],
    ["cache", "size"],
    ["passes", "show", "fuse-rows"],
    ["passes", "pipeline", "--upto", "joint:canonicalise"],
    ["run", "--help"],
    ["train", "--help"],
    ["explain", "--help"],
    ["dump", "--help"],
    ["opt", "--help"],
    ["runs", "--help"],
    ["doctor"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from deepcompile.cli.main import run\n"
        f"status = run({arguments!r})\n"
        "assert status in (0, 1), status\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = os.environ | {"DEEPCOMPILE_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, capture_output=True
    )
