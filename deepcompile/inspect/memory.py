"""Reading memory plans: files that a budget left in a run directory, or that a user edited."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import find_run


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


def read_plans(path: str | os.PathLike[str]) -> list[PlanRecord]:
    """Plans of a plan file, a run directory or the newest run of a folder.

    Raises `RunDirError` for what is none of these, or holds no plan.
    """
    place = Path(path)
    files = [place] if place.is_file() else sorted((find_run(place) / "memory").glob("*.json"))
    found = [plan for file in files for plan in _plans(file)]
    if not found:
        raise RunDirError(
            f"{place} has no memory plan: none of its graphs was compiled with memory_budget"
        )
    return found


def _plans(file: Path) -> Iterator[PlanRecord]:
    try:
        for plan in json.loads(file.read_text(encoding="utf8"))["plans"]:
            yield PlanRecord(
                file, plan["graph"], plan["facts"], tuple(plan["tensors"]), plan.get("timeline", {})
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirError(f"{file} is no memory plan: {error}") from None


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
