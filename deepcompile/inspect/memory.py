"""Reading memory plans: files that a budget left in a run directory, or that a user edited."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import find_run
from deepcompile.inspect.safe_files import read_json, visible_line


@dataclass(frozen=True)
class PlanRecord:
    """The plan of one graph.

    Attributes:
        file: where it was found.
        graph: fingerprint of the joint graph it is for.
        facts: budget, predicted peaks, seconds and bound.
        tensors: one row each: name, op, bytes, decision, price, line.
        timeline: bytes at each step of forward and backward, and what is there at their peaks.
    """

    file: Path
    graph: str
    facts: Mapping[str, Any]
    tensors: tuple[Mapping[str, Any], ...]
    timeline: Mapping[str, Any]

    def total(self, decision: str) -> int:
        """Bytes of all tensors with a decision."""
        return sum(row["nbytes"] for row in self.tensors if row["decision"] == decision)


@dataclass(frozen=True)
class PlanDifference:
    """A tensor that two plans decide differently; None where one does not have it."""

    tensor: str
    nbytes: int
    before: str | None
    after: str | None
    origin: str | None


_FACTS = ("budget", "peak", "unplanned_peak", "parameters", "optimizer")
_NUMBERS = (*_FACTS, "recompute_seconds", "bound_seconds", "exposed_seconds", "calls")


def read_plans(path: str | os.PathLike[str], notes: list[str] | None = None) -> list[PlanRecord]:
    """Plans of a plan file, a run directory or the newest run of a folder.

    `notes` gets a line for each file or tensor of a run that cannot be read. Raises `RunDirError`
    for what is none of these, or holds no plan.
    """
    place, told = Path(path), [] if notes is None else notes
    if place.is_file():
        return list(_plans(place.parent, place, told))
    run = find_run(place)
    found: list[PlanRecord] = []
    for file in sorted((run / "memory").glob("*.json")):
        try:
            found += _plans(run, file, told)
        except RunDirError as error:
            told.append(str(error))
    if not found:
        why = f": {told[0]}" if told else ": none of its graphs was compiled with memory_budget"
        raise RunDirError(f"{visible_line(str(place))} has no memory plan{why}")
    return found


def _plans(root: Path, file: Path, notes: list[str]) -> Iterator[PlanRecord]:
    shown = visible_line(str(file))
    document = read_json(root, file)
    plans = document.get("plans")
    if not isinstance(plans, list):
        raise RunDirError(f"{shown} is no memory plan: it has no list 'plans'")
    for plan in plans:
        try:
            yield _plan(file, plan, notes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise RunDirError(f"{shown} is no memory plan: {detail}") from None


def _plan(file: Path, plan: Mapping[str, Any], notes: list[str]) -> PlanRecord:
    """The plan, with what is not as it should be left out and noted."""
    facts = dict(plan["facts"])
    for name in _FACTS:
        _ = facts[name]
    for name in _NUMBERS:
        if facts.get(name) is not None and not _is_number(facts[name]):
            raise ValueError(f"{name} is {str(facts[name])[:40]!r}, not a number")
    if plan["tensors"] and facts.get("recompute_seconds") is None:
        facts["recompute_seconds"] = 0.0
    rows = [row for row in plan["tensors"] if _is_row(row)]
    timeline = {
        half: course for half, course in plan.get("timeline", {}).items() if _is_course(course)
    }
    left_out = len(plan["tensors"]) - len(rows) + len(plan.get("timeline", {})) - len(timeline)
    if left_out:
        notes.append(f"{visible_line(file.name)}: {left_out} parts are nothing known")
    rows = [{"why": "", "origin": None, "seconds": 0.0, **row} for row in rows]
    return PlanRecord(file, str(plan["graph"]), facts, tuple(rows), timeline)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("tensor"), str)
        and isinstance(row.get("decision"), str)
        and _is_number(row.get("nbytes"))
        and row["nbytes"] > 0
        and all(_is_number(row.get(key, 0)) for key in ("seconds", "exposed", "ahead"))
        and isinstance(row.get("origin") or "", str)
        and isinstance(row.get("why", ""), str)
    )


def _is_course(course: Any) -> bool:
    return (
        isinstance(course, dict)
        and isinstance(course.get("live"), list)
        and bool(course["live"])
        and all(map(_is_number, course["live"]))
        and _is_number(course.get("peak_step"))
        and isinstance(course.get("owners"), list)
        and all(
            isinstance(owner, dict)
            and _is_number(owner.get("nbytes"))
            and {"role", "tensor"} <= owner.keys()
            for owner in course["owners"]
        )
    )


def compare(before: PlanRecord, after: PlanRecord) -> list[PlanDifference]:
    """What two plans of one graph decide differently, the largest tensors first."""
    rows = [{row["tensor"]: row for row in plan.tensors} for plan in (before, after)]
    found = []
    for name in dict.fromkeys([*rows[0], *rows[1]]):
        left, right = rows[0].get(name), rows[1].get(name)
        row = right or left or {}
        old = left["decision"] if left else None
        new = right["decision"] if right else None
        if old != new:
            found.append(PlanDifference(name, row["nbytes"], old, new, row.get("origin")))
    return sorted(found, key=lambda difference: (-difference.nbytes, difference.tensor))
