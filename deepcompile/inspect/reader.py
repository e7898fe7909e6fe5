"""Reads a run directory into dataclasses. Imports no torch and executes nothing.

What writes it, and the files in it: `deepcompile.pipeline.rundir`. A run may be cut short, come
from another version, be huge or be made by someone who means harm: what can be read is there, what
cannot is a line of `Run.notes`. See `safe_files` for what is done to each file.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.safe_files import (
    json_lines,
    read_json,
    read_text,
    shown_name,
    visible_line,
)

SCHEMA = 1
"""The newest `schema` of run.json that this version understands."""
MAX_EVENTS = 200_000
"""Events that `Run.events` holds; `iter_events` has no limit."""
MAX_NOTES = 20
_STEM = re.compile(r"(\d+)_(.*)", re.DOTALL)


@dataclass(frozen=True)
class State:
    """A graph after one pass; `path` is None when the pass changed nothing."""

    index: int
    name: str
    path: Path | None
    meta: Mapping[str, Any]
    root: Path = field(default=Path(os.sep), repr=False)

    @property
    def text(self) -> str | None:
        """The graph as text, when it was kept; `RunDirError` when it cannot be read."""
        return None if self.path is None else read_text(self.root, self.path)

    @property
    def status(self) -> str:
        """`input`, `changed`, `unchanged`, `failed`, … or empty."""
        return visible_line(str(self.meta.get("status", "")))

    @property
    def ms(self) -> float | None:
        """Milliseconds of the pass, where they are known."""
        return _number(self.meta.get("ms"), None)

    @property
    def op_delta(self) -> dict[str, int]:
        """Ops that the pass added (positive) or removed (negative)."""
        delta = self.meta.get("op_delta")
        counts = delta.items() if isinstance(delta, Mapping) else ()
        return {str(op): int(_number(count, 0.0)) for op, count in counts}


@dataclass(frozen=True)
class GraphRecord:
    """All states of one graph, in order; the first is the one before any pass."""

    name: str
    states: tuple[State, ...]

    @property
    def last_text(self) -> State:
        """The newest state that has a text; `RunDirError` where none has."""
        for state in reversed(self.states):
            if state.path is not None:
                return state
        raise RunDirError(f"no text of graph {self.name} was kept")

    @property
    def kind(self) -> str:
        """`joint`, `forward`, `backward` or `inference`; empty where it is not said."""
        kinds = (str(state.meta.get("kind", "")) for state in self.states)
        return visible_line(next(filter(None, kinds), ""))


@dataclass(frozen=True)
class KernelRecord:
    """One generated kernel: where it came from and its files by name."""

    name: str
    path: Path
    meta: Mapping[str, Any]
    root: Path = field(default=Path(os.sep), repr=False)

    @property
    def origins(self) -> tuple[str, ...]:
        """The user's `file:line` texts."""
        return _texts(self.meta.get("origins"))

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops it came from."""
        return _texts(self.meta.get("ops"))

    @property
    def graph(self) -> str:
        """The graph that calls it; empty where it is not said."""
        return str(self.meta.get("graph", ""))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the kept files, without meta.json."""
        try:
            return tuple(sorted(p.name for p in self.path.iterdir() if p.name != "meta.json"))
        except OSError:
            return ()

    def read(self, file: str) -> str:
        """The text of one of `files`; `RunDirError` when it cannot be read."""
        return read_text(self.root, self.path / file)


@dataclass(frozen=True)
class Event:
    """One recorded fact: a fallback, a failed pass, a rejected fusion."""

    kind: str
    time: float
    pid: int
    rank: int
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A whole run directory; graphs, kernels and events are read when they are asked for.

    `notes` has a line for all that could not be read so far.
    """

    path: Path
    info: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return shown_name(self.path)

    @property
    def status(self) -> str:
        """`ok`, `failed`, `running`, `killed` or `unreadable`.

        A run that never said how it ended is running, unless its process was of this machine and is
        there no more.
        """
        status = visible_line(str(self.info.get("status", "unknown")))
        return "killed" if status == "running" and self._is_gone else status

    @property
    def _is_gone(self) -> bool:
        pid = self.info.get("pid")
        if self.info.get("host") != platform.node() or type(pid) is not int or pid <= 0:
            return False
        try:
            os.kill(pid, 0)  # only asks
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # of another user, or no number of a process
            return False
        return False

    @cached_property
    def graphs(self) -> tuple[GraphRecord, ...]:
        """In the order in which they were compiled."""
        found = [self._graph(p) for p in self._folders("graphs")]
        return tuple(sorted((g for g in found if g.states), key=lambda g: _time(g.states[0])))

    @cached_property
    def kernels(self) -> tuple[KernelRecord, ...]:
        """By name."""
        return tuple(self._kernels())

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """In the order of time, `MAX_EVENTS` at most."""
        found: list[Event] = []
        for event in self.iter_events():
            if len(found) == MAX_EVENTS:
                self.note(f"more than {MAX_EVENTS} events: the later ones are left out")
                break
            found.append(event)
        return tuple(sorted(found, key=lambda event: event.time))

    @property
    def fallbacks(self) -> tuple[Event, ...]:
        """What runs in eager, with the reason."""
        return tuple(e for e in self.events if e.kind == "fallback")

    def iter_events(self) -> Iterator[Event]:
        """All events, file by file, without holding more than one."""
        for file in sorted(self.path.glob("events*.jsonl")):
            broken = 0
            try:
                for record in json_lines(self.path, file):
                    broken += record is None
                    if record is not None:
                        yield _event(record)
            except RunDirError as error:
                self.note(str(error))
            if broken:
                self.note(f"{shown_name(file)}: {broken} lines are cut or hold no event")

    def note(self, text: str) -> None:
        """Keep a line on what cannot be shown, once; `MAX_NOTES` at most."""
        if text in self.notes or len(self.notes) > MAX_NOTES:
            return
        more = f"more than {MAX_NOTES} files or parts cannot be read"
        self.notes.append(text if len(self.notes) < MAX_NOTES else more)

    def _folders(self, name: str) -> Iterator[Path]:
        for path in _entries(self.path / name):
            if path.is_symlink() or (self.path / name).is_symlink():
                self.note(f"{name}/{shown_name(path)} is a link; it is not followed")
            elif path.is_dir():
                yield path

    def _graph(self, folder: Path) -> GraphRecord:
        files = [p for p in _entries(folder) if p.suffix in (".ir", ".json")]
        texts = {p.stem: p for p in files if p.suffix == ".ir"}
        stems = sorted({p.stem for p in files})
        described = {p.stem for p in files if p.suffix == ".json"}
        name, states = shown_name(folder), []
        for stem in stems:
            meta: dict[str, Any] = {}
            if stem in described:
                try:
                    meta = read_json(self.path, folder / f"{stem}.json")
                except RunDirError as error:
                    self.note(str(error))
            else:
                self.note(f"{shown_name(folder)}: {visible_line(stem)} was not finished")
            name = visible_line(str(meta.get("graph", name)))
            number, title = _of_stem(stem)
            index = int(_number(meta.get("index"), number))
            title = visible_line(str(meta.get("name", title)))
            states.append(State(index, title, texts.get(stem), meta, self.path))
        states.sort(key=lambda s: (s.index, _time(s)))
        return GraphRecord(name, tuple(states))

    def _kernels(self) -> Iterator[KernelRecord]:
        for folder in self._folders("kernels"):
            try:
                meta = read_json(self.path, folder / "meta.json")
            except RunDirError as error:
                self.note(str(error))
                meta = {}
            yield KernelRecord(shown_name(folder), folder, meta, self.path)


def is_run(path: Path) -> bool:
    """Whether `path` is one run directory, whole or in part."""
    try:
        if (path / "run.json").is_file():
            return True
        # A run that lost run.json still has its index beside what it recorded.
        parts = ("graphs", "kernels", "events.jsonl")
        return (path / "index.md").is_file() and any((path / part).exists() for part in parts)
    except (OSError, ValueError):
        return False


def list_runs(root: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The runs directly below `root`, oldest first; `RunDirError` when `root` is no directory."""
    folder = Path(root)
    if not _is_folder(folder):
        raise RunDirError(
            f"{visible_line(str(folder))} is not a directory; record a run with "
            "options={'run_dir': ROOT} or DEEPCOMPILE_RUN_DIR=ROOT, and name ROOT"
        )
    return tuple(p for p in _entries(folder) if is_run(p))


def find_run(path: str | os.PathLike[str]) -> Path:
    """The run at `path`: itself, or the newest one below it; `RunDirError` when there is none."""
    folder = Path(path)
    if is_run(folder):
        return folder
    named = _latest(folder)
    if named is not None:
        return named
    runs = list_runs(folder)
    if not runs:
        shown = visible_line(str(folder))
        raise RunDirError(
            f"{shown} holds no run; record one with options={{'run_dir': '{shown}'}} or "
            f"DEEPCOMPILE_RUN_DIR={shown}"
        )
    return runs[-1]


def _latest(folder: Path) -> Path | None:
    """The run that the file `latest` names, when it is a name of a run beside it."""
    try:
        name = read_text(folder, folder / "latest", 4096).strip()
    except RunDirError:
        return None
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return None
    return folder / name if is_run(folder / name) else None


def read_run(path: str | os.PathLike[str]) -> Run:
    """The run at `path` (or the newest below it); `RunDirError` when there is none.

    A run that is still being written, whose process was killed, or that another version wrote reads
    as far as it goes; `notes` says what is missing.
    """
    folder = find_run(path)
    try:
        run = Run(folder, read_json(folder, folder / "run.json"))
    except RunDirError as error:
        run = Run(folder, {"status": "unreadable"})
        run.note(str(error))
        return run
    schema = run.info.get("schema")
    if not isinstance(schema, int):
        run.note("run.json does not say which schema it has; it may read wrong")
    elif schema > SCHEMA:
        run.note(
            f"written by a newer deepcompile (schema {schema}, this one knows {SCHEMA}): shown as "
            "far as it is known; update deepcompile to see all"
        )
    return run


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _of_stem(stem: str) -> tuple[float, str]:
    """Number and pass of `002_fuse-rows`."""
    found = _STEM.fullmatch(stem)
    return (float(found[1][:9]), found[2]) if found else (0.0, stem)


def _time(state: State) -> float:
    return _number(state.meta.get("time"), 0.0)


def _event(record: dict[str, Any]) -> Event:
    return Event(
        visible_line(str(record.pop("kind", "?"))),
        _number(record.pop("time", 0.0), 0.0),
        int(_number(record.pop("pid", 0), 0.0)),
        int(_number(record.pop("rank", 0), 0.0)),
        record,
    )


def _number(value: Any, default: Any) -> Any:
    """A finite number as float; `default` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    try:
        number = float(value)
    except OverflowError:
        return default
    return number if abs(number) < 1e300 else default


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (visible_line(value),)
    return tuple(visible_line(str(item)) for item in value) if isinstance(value, list) else ()
