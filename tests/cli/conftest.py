"""A small run on disk, as commands find it by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcompile.pipeline.rundir import RunDir

INPUT = """\
graph {
  %x : f32[4] = placeholder
  %sin : f32[4] = aten.sin.default(%x)  # model.py:3
  %cos : f32[4] = aten.cos.default(%sin)  # model.py:4
  %view : f32[2, 2] = aten.view.default(%cos, [2, 2])  # model.py:5
  return (%view,)
}
"""
FUSED = """\
graph {
  %x : f32[4] = placeholder
  %k0 : (f32[4]) = kernel @k0(%x)  # model.py:3
  %getitem : f32[4] = getitem(%k0, 0)  # model.py:3
  %view : f32[2, 2] = aten.view.default(%getitem, [2, 2])  # model.py:5
  return (%view,)
}
"""


def record_run(root: Path, name: str = "demo", source: str = "void k0() { add(1.0); }\n") -> Path:
    """A run of two graphs, one pass that changed something, and a kernel; its path."""
    run = RunDir.create(
        root, name=name, pipeline="graph(canonicalise,fuse-rows)", versions={"torch": "2.13.0"}
    )
    modules = {"modules": {"": "view", "layers.0": "sin", "layers.0.act": "cos"}}
    delta = {"aten.cos.default": -1, "aten.sin.default": -1, "getitem": 1, "kernel": 1}
    changed = {"status": "changed", "ms": 2.5, "op_delta": delta}
    for graph in ("g0_forward", "g1_inference"):
        kind = graph.partition("_")[2]
        run.graph_state(graph, 0, "input", INPUT, {"status": "input", "kind": kind, **modules})
        run.graph_state(graph, 1, "canonicalise", None, {"status": "unchanged", "ms": 0.5})
        run.graph_state(graph, 2, "fuse-rows", FUSED, changed)
        run.kernel(
            f"{graph}.k0",
            {"source.cpp": source, "nest.txt": "kernel @k0\n", "k0.ptx": ".version 8\n"},
            {"graph": graph, "ops": ["sin.default", "cos.default"], "origins": ["model.py:3"],
             "function": "k0"},
        )  # fmt: skip
    run.event("fallback", graph="g0_forward", reason="no rule for aten.foo", origin="model.py:9")
    run.finish()
    return run.path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one run, which commands take by default."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("DEEPCOMPILE_RUN_DIR", str(folder))
    monkeypatch.chdir(tmp_path)
    record_run(folder)
    return folder


@pytest.fixture
def another(root: Path) -> Path:
    """A second run, newer, whose kernels and options differ."""
    return record_run(root, "other", "void k0() { add(2.0); }\n")
