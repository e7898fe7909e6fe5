"""Which line of the user's program a failure inside the compiler belongs to."""

from __future__ import annotations

import re
from types import FrameType
from typing import NamedTuple

from torch.fx import Node

from .origins import origin_of


class Place(NamedTuple):
    """`file:line` of the user's program and the text of that line; both None when unknown."""

    origin: str | None
    source: str | None


def place_of(error: BaseException) -> Place:
    """The user's line behind the graph node that was being worked on when `error` was raised.

    Compilers walk graphs node by node, so that node is a local variable of the innermost frame that
    has one. Where an error was raised from another, the cause is asked if the error knows nothing.
    """
    at: BaseException | None = error
    while at is not None:
        node = _node_at_fault(at)
        if node is not None:
            return place_of_node(node)
        at = at.__cause__ or at.__context__
    return Place(None, None)


def place_of_node(node: Node) -> Place:
    """The user's line that `node` was traced from, or the nearest of its inputs that has one."""
    queue, seen = [node], {node}
    for current in queue:
        origin = origin_of(current)
        if origin is not None:
            return Place(origin, _text_of(current, origin))
        queue += [n for n in current.all_input_nodes if n not in seen]
        seen.update(queue)
    return Place(None, None)


def _node_at_fault(error: BaseException) -> Node | None:
    found: Node | None = None
    traceback = error.__traceback__
    while traceback is not None:
        found = _node_in(traceback.tb_frame) or found
        traceback = traceback.tb_next
    return found


def _node_in(frame: FrameType) -> Node | None:
    values = frame.f_locals
    for name in ("node", "n"):
        if isinstance(values.get(name), Node):
            return values[name]  # type: ignore[no-any-return]
    return next((value for value in values.values() if isinstance(value, Node)), None)


def _text_of(node: Node, origin: str) -> str | None:
    """The source line that the stack trace quotes below the frame `origin`."""
    path, _, line = origin.rpartition(":")
    trace = node.meta.get("stack_trace") or ""
    match = re.search(
        rf'File "[^"]*{re.escape(path)}", line {line}\b[^\n]*\n\s*(?P<text>[^\n]+)', trace
    )
    return match["text"].strip() if match else None
