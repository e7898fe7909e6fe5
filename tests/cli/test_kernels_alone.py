"""`kernels bench` and `kernels repro`: one kernel of a run, without the run and without us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run as command
from deepcompile.codegen.cpp_kernel import emit_kernel
from deepcompile.codegen.cpp_table import emit_table_kernel
from deepcompile.codegen.triton_kernel import emit_triton
from deepcompile.codegen.triton_schedule import plan_triton
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.pipeline.rundir import RunDir
from deepcompile.program_facts import support_files
from deepcompile.runtime.build import FLAGS

ROWS = """kernel @k0(in t: f32[7, 32], in at: i64[s0], out y: f32[s0], out z: f32[s0, 32]) {
  sizes s0
  axes p0: parallel s0, r0: reduced 32
  row:
    v0: i64 = load at[p0]
    v1: b1 = in_range 0 <= v0 < 7
    v2: b1 = check v1
  loop:
    v3: f32 = load t[32*v0 + r0] if v2
    v4: f32 = mul v3 v3
    v5: f32 = reduce sum v4
  row:
    store y[p0] v5
  loop:
    v6: f32 = div v3 v5
    store z[32*p0 + r0] v6
}"""
STEP = """kernel @k0(inout w: f32[n], in g: f32[n], in rate: f32[]) {
  sizes n
  axes p0: parallel n
  row:
    v0: f32 = load w[p0]
    v1: f32 = load g[p0]
    v2: f32 = load rate[0]
    v3: f32 = mul v1 v2
    v4: f32 = sub v0 v3
    store w[p0] v4
}"""

WITHOUT_US = """
import runpy, sys
sys.modules["deepcompile"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def record(root: Path, kind: str, source: str, nest: str, launch: dict[str, Any]) -> Path:
    """A run with the one kernel `g0.k0`."""
    run = RunDir.create(root, name="alone")
    for name, text in support_files(kind.startswith("cpp")).items():
        run.support(name, text)
    meta = {
        "graph": "g0", "ops": ["mul.Tensor"], "origins": ["m.py:3"], "sizes": {"s0": 5},
        "bytes_read": 1000, "bytes_written": 660, "operations": 10.0, "seconds": 1e-6,
        "launch": {"kind": kind, "function": "k0", **launch},
    }  # fmt: skip
    file = "source.cpp" if kind.startswith("cpp") else "source.py"
    run.kernel("g0.k0", {file: source, "nest.txt": nest}, meta)
    run.finish()
    return run.path


def rows_run(root: Path, *, spoiled: bool = False) -> Path:
    made = emit_kernel(parse_kernel(ROWS), "k0")
    source = made.body.replace("dc_div", "dc_mul") if spoiled else made.body
    assert not spoiled or source != made.body
    launch = {"elements": [224, 5, 5, 160], "workspace": 0, "flags": " ".join(FLAGS)}
    return record(root, "cpp", source, ROWS, launch)


def bench(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Exit, Any]:
    arguments = ["-q", "kernels", "bench", str(run), "k0", "--rounds", "2", "--json", *words]
    status = command(arguments)
    return status, json.loads(capsys.readouterr().out)


def test_a_kernel_of_cpp_is_timed_beside_a_copy(tmp_path: Path, capsys: Any):
    status, found = bench(rows_run(tmp_path), capsys, "--threads", "1")
    assert status == Exit.OK
    assert found["check"]["differs"] is False
    assert found["seconds"] > 0
    assert found["roofline_share"] == pytest.approx(found["copy_seconds"] / found["seconds"])
    assert found["bytes"] == 1660
    assert [result["name"] for result in found["results"]] == ["y", "z"]
    assert all(result["not finite"] == 0 for result in found["results"])


@pytest.mark.slow
def test_a_folder_is_enough_to_build_and_run_it(tmp_path: Path, capsys: Any):
    run, folder = rows_run(tmp_path / "runs"), tmp_path / "k0"
    arguments = ["kernels", "repro", str(run), "k0", "-o", str(folder), "--json"]
    assert command(arguments) == Exit.OK
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == ["kernel.cpp", "kernel.json", "nest.txt", "run.py"]
    script = [
        sys.executable, "-c", WITHOUT_US, str(folder / "run.py"), "--json", "--seed", "3"
    ]  # fmt: skip
    found = [
        json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
        for _ in range(2)
    ]
    assert found[0]["results"] == found[1]["results"]
    assert command(arguments) == Exit.USAGE
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
def test_wrong_results_are_exit_status_one(tmp_path: Path, capsys: Any):
    status, found = bench(rows_run(tmp_path, spoiled=True), capsys)
    assert status == Exit.NO
    assert found["check"]["differs"] is True


@pytest.mark.slow
def test_a_table_of_rows_runs_alone(tmp_path: Path, capsys: Any):
    source = emit_table_kernel(parse_kernel(STEP), "k0").body
    launch = {"extents": [5, 40, 1], "flags": " ".join(FLAGS)}
    status, found = bench(record(tmp_path, "cpp-table", source, STEP, launch), capsys)
    assert status == Exit.OK
    assert found["check"] == {"difference": 0.0, "bound": 0.0, "differs": False} or (
        found["check"]["difference"] < 1e-6
    )


@pytest.mark.slow
def test_a_kernel_of_triton_runs_interpreted(tmp_path: Path, capsys: Any):
    pytest.importorskip("triton")
    nest = parse_kernel(ROWS)
    made = emit_triton(nest, plan_triton(nest), "kernel")
    sizes = {"s0": 5}
    launch = {
        "elements": [224, 5, 5, 160],
        "functions": [
            {"name": f.name, "programs": made.programs(f, sizes), "warps": f.warps,
             "arguments": list(f.signature), "stages": f.stages}
            for f in made.functions
        ],
        "rows": made.rows(sizes),
        "workspaces": [],
    }  # fmt: skip
    status, found = bench(record(tmp_path, "triton", made.source, ROWS, launch), capsys)
    assert status == Exit.OK
    assert found["check"]["differs"] is False
    assert "untimed" in found or found["device"] == "cuda"


class TestWhatCannotRunAlone:
    def refused(self, run: Path, capsys: Any) -> str:
        assert command(["kernels", "repro", str(run), "k0"]) == Exit.USAGE
        return capsys.readouterr().err

    def test_a_kernel_that_does_not_say_how_it_is_called(self, tmp_path: Path, capsys: Any):
        run = RunDir.create(tmp_path)
        run.kernel("g0.k0", {"source.cpp": ""}, {"graph": "g0", "ops": [], "origins": []})
        assert "does not say how it is called" in self.refused(run.path, capsys)

    def test_a_nest_that_is_cut(self, tmp_path: Path, capsys: Any):
        run = record(tmp_path, "cpp", "", ROWS[:80], {"elements": [1], "flags": ""})
        assert "cannot be run alone" in self.refused(run, capsys)

    @pytest.mark.slow
    def test_a_source_that_does_not_build(self, tmp_path: Path, capsys: Any):
        launch = {"elements": [224, 5, 5, 160], "workspace": 0, "flags": " ".join(FLAGS)}
        run = record(tmp_path, "cpp", "not C++", ROWS, launch)
        assert command(["-q", "kernels", "bench", str(run), "k0"]) == Exit.USAGE
        assert "kernels repro" in capsys.readouterr().err
