"""What a run directory says about the kernels of a compile. Reads files only, needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunRecord:
    """Counts over all graphs of a run. `cache_hits` counts the graphs whose kernels were cached."""

    kernels: int
    fallbacks: int
    cache_hits: int
    cache_misses: int

    @property
    def all_cached(self) -> bool:
        return self.cache_hits > 0 and self.cache_misses == 0


def read_run(run_dir: Path) -> RunRecord | None:
    """The record of `run_dir`, or None where no compile left one there."""
    kernels = sum(1 for _ in run_dir.rglob("kernels/*/meta.json"))
    events = list(_events(run_dir))
    if not kernels and not events:
        return None
    cache = [event for event in events if event.get("kind") == "cache"]
    hits = sum(1 for event in cache if event.get("hit"))
    fallbacks = sum(1 for event in events if event.get("kind") == "fallback")
    return RunRecord(kernels, fallbacks, hits, len(cache) - hits)


def _events(run_dir: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(run_dir.rglob("events.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was stopped while writing
            if isinstance(event, dict):
                yield event
