"""The user's line that a graph node comes from."""

from __future__ import annotations

import functools
import os
import re
import traceback

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_READ = 'File "{}", line {}, in text\n'
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_DEMO = os.path.join(_OWN, "demo", "")
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


def origin_of(node: Node) -> str | None:
    """`file:line` of the user's program that `node` came from; None when it is not known.

    The innermost frame outside torch and this package, whose demo is a program too; relative to the
    working directory below it.
    """
    known = node.meta.get("origin")
    if isinstance(known, str):
        return known
    trace = node.meta.get("stack_trace")
    if not trace or (found := _frame_in(trace)) is None:
        return None
    path, line = found
    as_read = trace.endswith(_READ.format(path, line))
    return f"{path if as_read else _shown(path)}:{line}"


def user_line(node: Node) -> str:
    """`model.py:12`; ranks may have the program in different folders. Empty when not known."""
    return os.path.basename(origin_of(node) or "")


def origin_of_error(error: BaseException) -> str | None:
    """`file:line` of the user's program that was running when `error` was raised.

    What Dynamo was tracing is not in its traceback, but in the text of its errors.
    """
    for text in ("".join(traceback.format_tb(error.__traceback__)), str(error)):
        found = _users_frame(_FRAME.findall(text))
        if found is not None:
            return f"{_shown(found[0])}:{found[1]}"
    return None


def trace_of(path: str, line: str) -> str:
    """A stack trace of which `origin_of` gives `path:line` as it is, whatever the directory."""
    return "  " + _READ.format(path, line)


@functools.lru_cache(maxsize=4096)
def _frame_in(trace: str) -> tuple[str, str] | None:
    """Of the user, or the last where there is none."""
    frames: list[tuple[str, str]] = _FRAME.findall(trace)
    return _users_frame(frames) or (frames[-1] if frames else None)


def _users_frame(frames: list[tuple[str, str]]) -> tuple[str, str] | None:
    for path, line in reversed(frames):
        if path.startswith(_DEMO) or not path.startswith((_OWN, _TORCH, "<")):
            return path, line
    return None


def _shown(path: str) -> str:
    # Asked each time: a process may change its directory between two graphs.
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
