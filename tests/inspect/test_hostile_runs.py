"""Runs that are cut, foreign, huge or made to do harm: what can be read is, and no more."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompile.errors import RunDirError
from deepcompile.inspect import reader, safe_files
from deepcompile.inspect.memory import read_plans
from deepcompile.inspect.reader import Run, find_run, is_run, list_runs, read_run
from deepcompile.inspect.safe_files import (
    parse_json,
    read_json,
    read_text,
    visible,
    visible_line,
)
from deepcompile.inspect.sharding import read_shardings
from deepcompile.pipeline.rundir import RunDir

EVIL = "\x1b[31m\x1b]0;title\x07\r\x9b2J\u202e<script>alert(1)</script>\u2028"


def record(root: Path) -> Path:
    run = RunDir.create(root, name="x")
    run.graph_state("g0", 0, "input", "graph {\n}\n", {"status": "input"})
    run.graph_state("g0", 1, "fold", "graph {\n  %x = f()\n}\n", {"status": "changed", "ms": 1.0})
    run.kernel("k0", {"source.cpp": "x"}, {"ops": ["f"], "origins": ["m.py:1"]})
    run.event("fallback", reason="why")
    run.finish()
    return run.path


def read_all(run: Run) -> None:
    """Everything that commands take from a run."""
    for graph in run.graphs:
        _ = graph.kind
        for state in graph.states:
            _ = state.status, state.ms, state.op_delta
            if state.path is not None:
                with contextlib.suppress(RunDirError):
                    _ = state.text
    for kernel in run.kernels:
        _ = kernel.ops, kernel.origins, kernel.graph, kernel.files
    _ = run.events, run.fallbacks, run.status, run.name
    for note in run.notes:
        assert note.isprintable()


class TestText:
    @given(st.text())
    def test_visible_text_drives_no_terminal(self, text: str) -> None:
        shown = visible(text)
        assert not any(
            ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u202e\u2066"
            for c in shown
            if c not in "\n\t"
        )
        assert visible(shown) == shown
        assert "\n" not in visible_line(text)
        shown.encode()

    @given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner)
                        | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
    def test_visible_json_is_json(self, value: object) -> None:
        found = parse_json(json.dumps(value))
        again = json.dumps(found, ensure_ascii=False)
        assert not any(ord(c) < 32 for c in json.loads(json.dumps(again)))
        assert json.dumps(found) == visible(json.dumps(found))


class TestLinks:
    @pytest.mark.parametrize(
        "target", ["/etc/passwd", "../../../../outside", "/dev/zero", "/nowhere"]
    )
    def test_no_way_out_of_a_run(self, tmp_path: Path, target: str) -> None:
        (tmp_path / "outside").write_text("secret")
        path = record(tmp_path / "runs")
        file = path / "graphs/g0/001_fold.ir"
        file.unlink()
        file.symlink_to(target)
        run = read_run(path)
        state = run.graphs[0].states[1]
        with pytest.raises(RunDirError, match="leads out of the run"):
            _ = state.text

    def test_folders_that_are_links(self, tmp_path: Path) -> None:
        other = record(tmp_path / "other")
        path = record(tmp_path / "runs")
        (path / "graphs/g1").symlink_to(other / "graphs/g0")
        (path / "kernels/k1").symlink_to(other / "kernels/k0")
        run = read_run(path)
        assert [graph.name for graph in run.graphs] == ["g0"]
        assert [kernel.name for kernel in run.kernels] == ["k0"]
        assert "graphs/g1 is a link; it is not followed" in run.notes

    def test_pipes_are_not_waited_for(self, tmp_path: Path) -> None:
        path = record(tmp_path)
        (path / "graphs/g0/001_fold.ir").unlink()
        os.mkfifo(path / "graphs/g0/001_fold.ir")
        os.mkfifo(path / "events.2.r0.jsonl")
        run = read_run(path)
        with pytest.raises(RunDirError, match="no ordinary file"):
            _ = run.graphs[0].states[1].text
        assert len(run.events) == 1
        assert any("no ordinary file" in note for note in run.notes)

    @pytest.mark.parametrize("name", ["../outside", "/etc", "", "..", ".", "x\0y", "\x1b[0m"])
    def test_latest_names_only_what_is_beside_it(self, tmp_path: Path, name: str) -> None:
        record(tmp_path / "outside")
        path = record(tmp_path / "runs")
        (tmp_path / "runs/latest").write_text(name)
        assert find_run(tmp_path / "runs") == path


class TestSizes:
    def test_large_files_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = record(tmp_path)
        file = path / "graphs/g0/001_fold.ir"
        with pytest.raises(RunDirError, match="more than 0 MiB is not read"):
            read_text(path, file, 4)
        with file.open("ab") as out:
            out.truncate(safe_files.MAX_TEXT + 1)
        with pytest.raises(RunDirError, match="more than 256 MiB is not read"):
            _ = read_run(path).graphs[0].states[1].text

    def test_events_stream_and_stop(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reader, "MAX_EVENTS", 50)
        monkeypatch.setattr(safe_files, "MAX_LINE", 200)
        path = record(tmp_path)
        with (path / "events.jsonl").open("a") as events:
            events.write('{"kind": "long", "x": "' + "x" * 5000 + '"}\n')
            events.write("[" * 150 + "\n")
            events.write("".join(f'{{"kind": "n", "time": {n}}}\n' for n in range(100)))
        run = read_run(path)
        assert sum(1 for _ in run.iter_events()) == 101
        assert len(run.events) == 50
        assert "more than 50 events: the later ones are left out" in run.notes
        assert "events.jsonl: 2 lines are cut or hold no event" in run.notes

    def test_notes_do_not_grow(self, tmp_path: Path) -> None:
        path = record(tmp_path)
        for number in range(100):
            (path / f"graphs/g0/{number:03d}_x{number}.json").write_text("{")
        run = read_run(path)
        read_all(run)
        assert len(run.notes) == reader.MAX_NOTES + 1


class TestParts:
    def test_without_run_json(self, tmp_path: Path) -> None:
        path = record(tmp_path)
        (path / "run.json").unlink()
        assert is_run(path)
        run = read_run(path)
        assert run.status == "unreadable"
        assert [state.name for state in run.graphs[0].states] == ["input", "fold"]
        assert "run.json cannot be read: No such file" in run.notes[0]

    def test_a_state_that_was_not_finished(self, tmp_path: Path) -> None:
        path = record(tmp_path)
        (path / "graphs/g0/002_fuse-rows.ir").write_text("graph {\n  %x = f")
        (path / "graphs/g0/001_fold.json").write_text('{"name": "fo')
        states = read_run(path).graphs[0].states
        assert [(s.index, s.name) for s in states] == [(0, "input"), (1, "fold"), (2, "fuse-rows")]
        assert states[2].text == "graph {\n  %x = f"

    @pytest.mark.parametrize(
        ("schema", "note"),
        [(99, "written by a newer deepcompile (schema 99"), (None, "does not say which schema"),
         ("1", "does not say which schema"), (0, None), (1, None)],
    )  # fmt: skip
    def test_other_versions(self, tmp_path: Path, schema: object, note: str | None) -> None:
        path = record(tmp_path)
        info = json.loads((path / "run.json").read_text()) | {"schema": schema}
        (path / "run.json").write_text(json.dumps(info))
        run = read_run(path)
        assert len(run.graphs) == 1
        assert (note in run.notes[0]) if note else run.notes == []

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "graphs").mkdir()
        (tmp_path / "index.html").write_text("")
        assert not is_run(tmp_path)
        assert list_runs(tmp_path) == ()
        for place in ("x\0y", "x" * 5000):
            assert not is_run(Path(place))
            with pytest.raises(RunDirError, match="is not a directory"):
                read_run(place)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.just(EVIL) | st.just("../../etc"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
KEYS = ("schema", "status", "graph", "index", "name", "time", "ms", "op_delta", "kind", "ops",
        "origins", "counts", "pid", "rank", "modules", "versions", "options")  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.integers(0, 4))
def test_any_values_anywhere(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object], where: int
) -> None:
    path = record(tmp_path_factory.mktemp("runs"))
    files = ["run.json", "graphs/g0/000_input.json", "graphs/g0/001_fold.json",
             "kernels/k0/meta.json", "events.jsonl"]  # fmt: skip
    (path / files[where]).write_text(json.dumps(values) + "\n")
    run = read_run(path)
    read_all(run)
    assert visible_line(run.status) == run.status
    for graph in run.graphs:
        assert visible_line(graph.name) == graph.name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_any_file_cut_or_overwritten(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = record(tmp_path_factory.mktemp("runs"))
    chance = random.Random(seed)
    file = chance.choice(sorted(p for p in path.rglob("*") if p.is_file()))
    data = bytearray(file.read_bytes())
    at = chance.randrange(len(data) + 1)
    data[at:] = chance.randbytes(chance.choice([0, 3, 40]))
    file.write_bytes(data)
    read_all(read_run(path))


PLAN_KEYS = ("graph", "facts", "tensors", "timeline", "plan", "mesh", "parameters", "moves",
             "seconds", "memory", "nodes", "kind", "operations", "solver")  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(PLAN_KEYS), VALUES))
def test_plans_of_any_shape_are_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    path = record(tmp_path_factory.mktemp("runs"))
    for folder, document in (("memory", {"plans": [values]}), ("sharding", values)):
        (path / folder).mkdir()
        (path / folder / "g0.json").write_text(json.dumps(document))
    for read in (read_plans, read_shardings):
        found: object = None
        try:
            found = read(path)
        except RunDirError as error:
            found = str(error)
        assert found
        assert not isinstance(found, str) or found.isprintable()


def test_json_that_is_deep_or_no_object(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "[1]", "1" * 10_000, "", "\0"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(RunDirError):
            read_json(tmp_path, tmp_path / "x.json")
