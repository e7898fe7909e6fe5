"""What this process's run directory says about its kernels, in the few words the demo prints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import read_run


@dataclass(frozen=True)
class RunRecord:
    """Counts over all graphs of a run. Hits and misses count looks into the kernel cache."""

    path: Path
    kernels: int
    fallbacks: int
    cache_hits: int
    cache_misses: int

    @property
    def all_cached(self) -> bool:
        return self.cache_hits > 0 and self.cache_misses == 0


def newest_run(root: Path) -> RunRecord | None:
    """The record of this process's run below `root`, or None where it left none."""
    try:
        run = read_run(root)
    except RunDirError:
        return None
    if run.info.get("pid") != os.getpid():
        return None
    looks = [bool(event.fields.get("hit")) for event in run.events if event.kind == "cache"]
    hits = sum(looks)
    return RunRecord(run.path, len(run.kernels), len(run.fallbacks), hits, len(looks) - hits)
