"""The user's source line behind a graph node, in forward and in backward."""

from __future__ import annotations

import functools
import os
import re
from typing import NamedTuple

import torch
from torch.fx import Graph, Node

_FRAME = re.compile(
    r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)[^\n]*(?:\n(?P<text>[^\n]*))?', re.M
)
_TORCH = os.path.dirname(torch.__file__) + os.sep


class Origin(NamedTuple):
    """A line of the user's program: file, line number from 1, the line itself without indent."""

    file: str
    line: int
    text: str


def user_origin(node: Node) -> Origin | None:
    """The innermost line outside torch that made `node`; None for nodes without a stack trace.

    A node of the backward graph has the line of the forward op that it differentiates. Where every
    frame lies in torch, the innermost of them is returned.
    """
    trace = node.meta.get("stack_trace")
    return _innermost_user_frame(trace) if isinstance(trace, str) else None


@functools.lru_cache(maxsize=4096)
def _innermost_user_frame(trace: str) -> Origin | None:
    frames = [
        Origin(match["file"], int(match["line"]), (match["text"] or "").strip())
        for match in _FRAME.finditer(trace)
    ]
    own = [frame for frame in frames if not frame.file.startswith(_TORCH)]
    frames = own or frames
    return frames[-1] if frames else None


def copy_origins_to_backward(joint: Graph) -> None:
    """Give nodes of a joint graph that have no stack trace that of their forward op.

    Autograd gives an op and its gradient the same sequence number (`meta["seq_nr"]`); among the
    nodes with one number the first is the forward op.
    """
    by_number: dict[int, str] = {}
    for node in joint.nodes:
        number = node.meta.get("seq_nr")
        if number is None:
            continue
        trace = node.meta.get("stack_trace")
        if trace:
            by_number.setdefault(number, trace)
        elif number in by_number:
            node.meta["stack_trace"] = by_number[number]
