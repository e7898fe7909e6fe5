"""Reads a run directory into dataclasses. Imports no torch and executes nothing.

What writes it, and the files in it: `deepcompile.pipeline.rundir`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError

SCHEMA = 1
"""The newest `schema` of run.json that this version understands."""


@dataclass(frozen=True)
class State:
    """A graph after one pass; `path` is None when the pass changed nothing."""

    index: int
    name: str
    path: Path | None
    meta: Mapping[str, Any]

    @property
    def text(self) -> str | None:
        """The graph as text, when it was kept."""
        return None if self.path is None else self.path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class GraphRecord:
    """All states of one graph, in order; the first is the one before any pass."""

    name: str
    states: tuple[State, ...]

    @property
    def last_text(self) -> State:
        """The newest state that has a text."""
        return [s for s in self.states if s.path is not None][-1]


@dataclass(frozen=True)
class KernelRecord:
    """One generated kernel: where it came from and its files by name."""

    name: str
    path: Path
    meta: Mapping[str, Any]

    @property
    def origins(self) -> tuple[str, ...]:
        """The user's `file:line` texts."""
        return tuple(map(str, self.meta.get("origins", ())))

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops it came from."""
        return tuple(map(str, self.meta.get("ops", ())))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the kept files, without meta.json."""
        return tuple(sorted(p.name for p in self.path.iterdir() if p.name != "meta.json"))


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
    """A whole run directory."""

    path: Path
    info: Mapping[str, Any]
    graphs: tuple[GraphRecord, ...]
    kernels: tuple[KernelRecord, ...]
    events: tuple[Event, ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def status(self) -> str:
        """`ok`, `failed`, or `running` when it never said how it ended."""
        return str(self.info.get("status", "unknown"))

    @property
    def fallbacks(self) -> tuple[Event, ...]:
        """What runs in eager, with the reason."""
        return tuple(e for e in self.events if e.kind == "fallback")


def is_run(path: Path) -> bool:
    """Whether `path` is one run directory."""
    return (path / "run.json").is_file()


def list_runs(root: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The runs directly below `root`, oldest first; `RunDirError` when `root` is no directory."""
    folder = Path(root)
    if not folder.is_dir():
        raise RunDirError(f"{folder} is not a directory")
    return tuple(sorted(p for p in folder.iterdir() if is_run(p)))


def find_run(path: str | os.PathLike[str]) -> Path:
    """The run at `path`: itself, or the newest one below it; `RunDirError` when there is none."""
    folder = Path(path)
    if is_run(folder):
        return folder
    latest = folder / "latest"
    if latest.is_file():
        named = folder / latest.read_text(encoding="utf-8").strip()
        if is_run(named):
            return named
    runs = list_runs(folder)
    if not runs:
        raise RunDirError(
            f"{folder} holds no run; record one with options={{'run_dir': '{folder}'}} or "
            f"DEEPCOMPILE_RUN_DIR={folder}"
        )
    return runs[-1]


def read_run(path: str | os.PathLike[str]) -> Run:
    """The run at `path` (or the newest below it). Raises `RunDirError` when it cannot be read.

    A run that is still being written, or whose process was killed, reads up to where it came.
    """
    folder = find_run(path)
    info = _json(folder / "run.json")
    if info.get("schema", 0) > SCHEMA:
        raise RunDirError(
            f"{folder} was written by a newer deepcompile (schema {info['schema']}, this one reads "
            f"{SCHEMA}); update deepcompile to read it"
        )
    graphs = tuple(_graph(p) for p in _folders(folder / "graphs"))
    kernels = tuple(
        KernelRecord(p.name, p, _json(p / "meta.json")) for p in _kernel_folders(folder)
    )
    events = sorted(
        (e for file in sorted(folder.glob("events*.jsonl")) for e in _events(file)),
        key=lambda event: event.time,
    )
    ordered = sorted(graphs, key=lambda g: g.states[0].meta.get("time", 0.0) if g.states else 0.0)
    return Run(folder, info, tuple(ordered), kernels, tuple(events))


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _kernel_folders(run: Path) -> list[Path]:
    return [p for p in _folders(run / "kernels") if (p / "meta.json").is_file()]


def _graph(folder: Path) -> GraphRecord:
    states = []
    name = folder.name
    for file in folder.glob("*.json"):
        meta = _json(file)
        text = file.with_suffix(".ir")
        name = str(meta.get("graph", name))
        states.append(
            State(
                int(meta.get("index", 0)),
                str(meta.get("name", file.stem)),
                text if text.is_file() else None,
                meta,
            )
        )
    states.sort(key=lambda s: (s.index, s.meta.get("time", 0.0)))
    return GraphRecord(name, tuple(states))


def _events(file: Path) -> Iterator[Event]:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a killed process may be cut
        yield Event(
            str(record.pop("kind", "?")),
            float(record.pop("time", 0.0)),
            int(record.pop("pid", 0)),
            int(record.pop("rank", 0)),
            record,
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise RunDirError(f"{file} holds no JSON object")
    return value
