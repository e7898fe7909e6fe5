"""Commands as children: output in a file, a limit of time, an end for all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_running: set[int] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Ended:
    """How a command ended; `status` is None when it was stopped for its time, negative a signal."""

    status: int | None
    seconds: float
    said: str


def run_command(
    command: Sequence[str], environ: Mapping[str, str], *, timeout: float, log: Path
) -> Ended:
    """Run a command to its end or to its limit in seconds.

    Args:
        environ: all its variables.
        log: where what it prints goes; the last part of it is in the result.

    Raises:
        OSError: it cannot be started.
    """
    start = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            list(command),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with _lock:
        _running.add(process.pid)
    status: int | None
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        kill_tree(process.pid)
        process.wait()
        with _lock:
            _running.discard(process.pid)
    text = log.read_text(encoding="utf-8", errors="replace")
    return Ended(status, time.monotonic() - start, text[-20_000:])


def kill_running() -> None:
    """End every command that runs, from whatever thread it was started."""
    with _lock:
        pids = list(_running)
    for pid in pids:
        kill_tree(pid)


def kill_tree(pid: int) -> None:
    """End a process, its group and all processes below it, whatever sessions they made.

    torchrun's ranks and C++ compilers are in sessions of their own.
    """
    found = _below(pid)
    for one in (pid, *found):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(one, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if one != pid:
                os.kill(one, signal.SIGKILL)


def _below(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = (entry / "stat").read_text().rpartition(")")[2]
            parents.setdefault(int(after_name.split()[1]), []).append(int(entry.name))
    found, stack = [], [pid]
    while stack:
        for child in parents.get(stack.pop(), []):
            found.append(child)
            stack.append(child)
    return found
