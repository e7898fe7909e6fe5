"""The user's line that a graph node comes from."""

from __future__ import annotations

import functools
import os
import re

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
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
    return _origin_in(trace) if trace else None


@functools.lru_cache(maxsize=4096)
def _origin_in(trace: str) -> str | None:
    frames = _FRAME.findall(trace)
    for path, line in reversed(frames):
        if path.startswith(_DEMO) or not path.startswith((_OWN, _TORCH, "<")):
            return f"{_shown(path)}:{line}"
    return f"{_shown(frames[-1][0])}:{frames[-1][1]}" if frames else None


def _shown(path: str) -> str:
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
