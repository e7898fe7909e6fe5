"""The run directory: what is written, read back, and what happens when it cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import find_run, list_runs, read_run
from deepcompile.pipeline import rundir
from deepcompile.pipeline.rundir import RunDir, process_run


def record(root: Path) -> RunDir:
    run = RunDir.create(root, name="demo", options={"verify": True}, pipeline="graph(a)")
    run.graph_state("g0", 0, "input", "graph {\n}", {"kind": "inference", "status": "input"})
    run.graph_state("g0", 1, "canonicalise", None, {"status": "unchanged", "ms": 1.5})
    meta = {"status": "changed", "ms": 2.0, "op_delta": {"kernel": 1, "aten.sin.default": -2}}
    run.graph_state("g0", 2, "fuse-rows", "graph {\n  k\n}", meta)
    kernel = {"origins": ["model.py:12"], "ops": ["aten.sin.default"], "graph": "g0"}
    run.kernel("row_0", {"source.cpp": "void f() {}\n", "nest.txt": "kernel @row_0\n"}, kernel)
    run.event("fallback", graph="g0", reason="no rule for aten.foo", origin="model.py:13")
    run.finish()
    return run


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    run = read_run(record(tmp_path).path)
    assert (run.status, run.info["options"], run.info["pipeline"]) == (
        "ok",
        {"verify": True},
        "graph(a)",
    )
    (graph,) = run.graphs
    assert [(s.index, s.name, s.text) for s in graph.states] == [
        (0, "input", "graph {\n}\n"),
        (1, "canonicalise", None),
        (2, "fuse-rows", "graph {\n  k\n}\n"),
    ]
    assert graph.last_text.index == 2
    (kernel,) = run.kernels
    assert (kernel.origins, kernel.ops) == (("model.py:12",), ("aten.sin.default",))
    assert kernel.files == ("nest.txt", "source.cpp")
    (fallback,) = run.fallbacks
    assert fallback.fields["reason"] == "no rule for aten.foo"
    assert fallback.pid == os.getpid()


def test_files_are_where_the_docs_say(tmp_path: Path) -> None:
    path = record(tmp_path).path
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    assert files == [
        "events.jsonl",
        "graphs/g0/000_input.ir",
        "graphs/g0/000_input.json",
        "graphs/g0/001_canonicalise.json",
        "graphs/g0/002_fuse-rows.ir",
        "graphs/g0/002_fuse-rows.json",
        "index.md",
        "kernels/row_0/meta.json",
        "kernels/row_0/nest.txt",
        "kernels/row_0/source.cpp",
        "run.json",
    ]
    assert (tmp_path / "latest").read_text() == path.name + "\n"


def test_index_is_in_the_order_of_events(tmp_path: Path) -> None:
    lines = (record(tmp_path).path / "index.md").read_text().splitlines()
    assert [line for line in lines[1:] if line] == [
        "## graph g0",
        "- [000 input](graphs/g0/000_input.ir), input",
        "- 001 canonicalise, unchanged, 1.5 ms",
        "- [002 fuse-rows](graphs/g0/002_fuse-rows.ir), changed, 2.0 ms, ops +1 -2",
        "- kernel [row_0](kernels/row_0/) from model.py:12: aten.sin.default",
        "- **fallback** model.py:13 no rule for aten.foo",
    ]


def test_a_directory_is_never_reused(tmp_path: Path) -> None:
    first, second = record(tmp_path), record(tmp_path)
    assert first.path != second.path
    assert len(list_runs(tmp_path)) == 2
    assert find_run(tmp_path) == second.path


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    run = record(tmp_path)
    run.graph_state("g0", 2, "fuse-rows", "another text", {})
    assert run.kernel("row_0", {"source.cpp": "other"}, {}) == "row_0.2"
    again = read_run(run.path)
    assert [s.text for s in again.graphs[0].states][-2:] == ["graph {\n  k\n}\n", "another text\n"]
    assert len(again.kernels) == 2
    assert run.unique_graph_name("g0") == "g0.2"


def test_names_cannot_leave_the_directory(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", name="../../x")
    run.graph_state("../up", 0, "a/b", "text", {})
    run.kernel("../../k", {"../f": "x"}, {})
    inside = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert all(run.path in p.parents or p == tmp_path / "runs" / "latest" for p in inside)


def test_values_that_are_no_json_become_text(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.event("odd", path=Path("x"), nan=float("nan"), names={"b", "a"}, nested=({"k": object},))
    (event,) = read_run(run.path).events
    assert event.fields["path"] == "x"
    assert event.fields["nan"] == "nan"
    assert event.fields["names"] == ["a", "b"]


def test_unusable_root_is_one_warning(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a directory")
    with pytest.warns(UserWarning, match="recording into .* stopped") as caught:
        run = RunDir.create(file / "runs")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.graph_state("g", 0, "input", "text", {})
        assert run.kernel("k", {}, {}) == ""
        run.event("fallback")
        run.finish()


def test_disk_that_fills_up_stops_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(tmp_path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rundir, "_create", full)
    with pytest.warns(UserWarning, match="No space left") as caught:
        run.graph_state("g1", 0, "input", "text", {})
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.graph_state("g1", 1, "other", "text", {})
    assert run.broken
    assert len(read_run(run.path).kernels) == 1


def test_killed_process_leaves_a_readable_run(tmp_path: Path) -> None:
    program = (
        "import os, sys; from deepcompile.pipeline.rundir import RunDir\n"
        "run = RunDir.create(sys.argv[1])\n"
        "run.graph_state('g', 0, 'input', 'text', {})\n"
        "run.event('note', x=1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    with (find_run(tmp_path) / "events.jsonl").open("a") as events:
        events.write('{"kind": "cut')
    run = read_run(tmp_path)
    assert run.status == "killed"
    assert [e.kind for e in run.events] == ["note"]
    assert run.graphs[0].states[0].text == "text\n"


def test_forked_child_writes_its_own_events(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.event("parent")
    child = os.fork()
    if child == 0:
        run.event("child")
        os._exit(0)
    os.waitpid(child, 0)
    assert [e.kind for e in read_run(run.path).events] == ["parent", "child"]
    assert (run.path / f"events.{child}.r0.jsonl").is_file()


def test_one_run_per_process_and_root(tmp_path: Path) -> None:
    first = process_run(tmp_path / "a", name="x")
    assert process_run(tmp_path / "a") is first
    assert process_run(tmp_path / "b") is not first


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="holds no run; record one with"):
        read_run(tmp_path)
    with pytest.raises(RunDirError, match="is not a directory"):
        read_run(tmp_path / "absent")
    run = record(tmp_path)
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(info | {"schema": 99}))
    (note,) = read_run(run.path).notes
    assert "newer deepcompile (schema 99" in note
