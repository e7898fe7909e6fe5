"""What one trial gave, and what its run directory says of passes, rewrites and kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcompile.child.signature import Signature
from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import Run, is_run, read_run


@dataclass(frozen=True)
class Outcome:
    """One run of a subject.

    Attributes:
        seconds: of a step, where that was timed; of the whole of a command.
        is_skip: it asked to be skipped.
        compiles: how many graphs came to the backend; -1: not known.
        place: where its files lie.
    """

    failure: Signature | None
    seconds: float | None = None
    is_skip: bool = False
    place: Path | None = None
    seed: int = 0
    compiles: int = -1

    def read(self) -> Run | None:
        """The run directory of what it compiled; of ranks, that of the first."""
        assert self.place is not None
        root = self.place / "runs"
        folders = sorted(p for p in root.iterdir() if is_run(p)) if root.is_dir() else []
        runs = []
        for folder in folders:
            try:
                runs.append(read_run(folder))
            except RunDirError:  # its process was killed while it began
                continue
        runs.sort(key=lambda run: (int(run.info.get("rank", 0)), -len(run.graphs)))
        return runs[0] if runs else None


@dataclass(frozen=True)
class Application:
    """One application of a pass in the order of a process."""

    number: int
    pass_name: str
    graph: str
    rewrites: int = 0

    def __str__(self) -> str:
        return f"{self.pass_name} on {self.graph}"


def applications(run: Run) -> dict[int, Application]:
    """The applications that count, by number; one that failed and ended the process too."""
    found: dict[int, Application] = {}
    for graph in run.graphs:
        for state in graph.states:
            number = state.meta.get("number")
            if isinstance(number, int):
                rewrites = sum(dict(state.meta.get("rewrites", {})).values())
                found[number] = Application(number, state.name, graph.name, rewrites)
    for event in run.events:
        number = event.fields.get("number")
        if event.kind == "recompute" and isinstance(number, int):
            found[number] = Application(number, "recompute", str(event.fields.get("graph")))
    for event in run.events:
        if event.kind == "pass-failed":
            name, where = str(event.fields.get("pass")), str(event.fields.get("graph"))
            if not any((a.pass_name, a.graph) == (name, where) for a in found.values()):
                number = max(found, default=0) + 1
                found[number] = Application(number, name, where)
    return found


def numbered(run: Run, kind: str) -> dict[int, Mapping[str, Any]]:
    """Events of a kind that carry a number, by number: rewrites, kernels."""
    return {
        int(event.fields["number"]): event.fields
        for event in run.events
        if event.kind == kind and event.fields.get("number") is not None
    }


def change(run: Run, application: Application) -> tuple[str, str] | None:
    """The graph before and after an application, where it changed something."""
    for graph in run.graphs:
        if graph.name != application.graph:
            continue
        before = None
        for state in graph.states:
            if state.meta.get("number") == application.number:
                after = state.text
                return None if after is None or before is None else (before, after)
            before = state.text or before
    return None
