"""What the processes of a child leave behind: one file of JSON lines each. Imports no torch.

Lines have an `event`: `compile` (torch.compile was called), `failure` (a signature), `exception`
(one that ended the process, as a signature).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from deepcompile.child.environment import REPORT
from deepcompile.child.signature import signature_of_error


def folder() -> Path | None:
    """Where this process reports to, if it does."""
    text = os.environ.get(REPORT)
    return Path(text) if text else None


def say(event: str, **fields: Any) -> None:
    """Add a line to this process's file."""
    place = folder()
    if place is None:
        return
    rank = os.environ.get("RANK", "0")
    line = json.dumps({"event": event, "rank": rank} | fields) + "\n"
    with open(place / f"{int(rank):05d}-{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
        file.write(line)


def lines(place: Path) -> Iterator[dict[str, Any]]:
    """All that was reported, lower ranks first."""
    for file in sorted(place.glob("*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(text)


def report_uncaught() -> None:
    """Report the exception that ends this process, then do with it what was done before."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            say("exception", **signature_of_error(error, "run").to_dict())
        before(kind, error, trace)

    sys.excepthook = hook
