"""Calls in forks of this process, which stays as it was: no state can leak from one to the next.

This process must not have started threads: it imports, and computes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepcompile.child.processes import kill_tree
from deepcompile.child.signature import Signature, signature_of_error

_children: set[int] = set()


def in_a_fork(
    call: Callable[[], Mapping[str, Any]],
    *,
    environ: Mapping[str, str],
    timeout: float,
    log: Path,
) -> dict[str, Any]:
    """What `call` returns in a fork, a mapping that JSON holds; or `{"failure": ...}`.

    Failures are signatures: an exception that left the call, a signal, a `timeout` (in seconds)
    after which the fork and all that it started are killed.

    Args:
        environ: variables on top of those of this process; empty ones are unset.
        log: what the fork prints goes there.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(call, environ, write, log)
    os.close(write)
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    _children.add(pid)
    try:
        text, ended = _read(read, time.monotonic() + timeout)
        if not ended:
            kill_tree(pid)
        _, status = os.waitpid(pid, 0)
    except BaseException:
        kill_tree(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise
    finally:
        os.close(read)
        _children.discard(pid)
        # What it had started and left behind.
        kill_tree(pid)
    if not ended:
        found = Signature("timeout", "", f"no end after {timeout:.0f} s")
        return {"failure": found.to_dict()}
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"failure": Signature("signal", name, _last(log)).to_dict()}
    if not text:
        status = os.waitstatus_to_exitcode(status)
        return {"failure": Signature("exit", str(status), _last(log)).to_dict()}
    result: dict[str, Any] = json.loads(text)
    return result


def _child(
    call: Callable[[], Mapping[str, Any]], environ: Mapping[str, str], write: int, log: Path
) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(environ)
        for name in [name for name, value in environ.items() if not value]:
            del os.environ[name]
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            result = dict(call())
        except Exception as error:
            traceback.print_exc()
            result = {"failure": signature_of_error(error, "run").to_dict()}
        with open(write, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(result))
        status = 0
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _read(pipe: int, deadline: float) -> tuple[str, bool]:
    """All that comes before the other end closes, and whether it does in time."""
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return "", False
        part = os.read(pipe, 1 << 16)
        if not part:
            return b"".join(parts).decode(), True
        parts.append(part)


def kill_children() -> None:
    """End all forks that still run; for handlers of signals."""
    for pid in list(_children):
        kill_tree(pid)


def _last(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
    return ""
