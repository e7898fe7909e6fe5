"""Differences of graphs as lines: counts, one below the other, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from deepcompile.errors import RunDirError
from deepcompile.inspect.graph_diff import GraphDiff, Kind, rows
from deepcompile.inspect.ir_text import op_delta
from deepcompile.inspect.reader import GraphRecord, State
from deepcompile.inspect.states import graph_at, state_before

_KINDS: tuple[Kind, ...] = ("added", "removed", "changed", "renamed", "moved")


def delta_text(delta: Mapping[str, int], limit: int | None = None) -> str:
    """`aten.mul.Tensor -30, kernel +17`, the largest first; `limit` ops at most."""
    order = sorted(delta.items(), key=lambda item: (-abs(item[1]), item[0]))
    shown = [f"{op} {count:+d}" for op, count in order[:limit]]
    rest = len(order) - len(shown)
    return ", ".join(shown) + (f" and {rest} ops more" if rest else "")


def delta_of_states(graph: GraphRecord, state: State) -> dict[str, int]:
    """The op counts that a pass changed: as recorded, else counted in the texts."""
    if state.op_delta or state.path is None:
        return state.op_delta
    before = state_before(graph, state)
    try:
        return op_delta(graph_at(before), graph_at(state)) if before is not None else {}
    except RunDirError:
        return {}


def page(diff: GraphDiff, limit: int | None) -> Iterator[str]:
    """The counts: ops first, then nodes by what became of them."""
    yield f"ops: {delta_text(diff.ops, limit) or 'the same'}"
    counts = [f"{diff.count(kind)} {kind}" for kind in _KINDS if diff.count(kind)]
    yield f"nodes: {', '.join(counts) or 'the same'}"
    yield from diff.declarations
    if diff.kernels:
        yield f"kernels whose code changed: {', '.join(diff.kernels)}"
    for name, body in diff.bodies.items():
        yield from (f"graph @{name}: {line}" for line in page(body, limit))


def unified(diff: GraphDiff, context: int, order: bool) -> Iterator[str]:
    """One below the other."""
    for row in rows(diff, context=context, order=order):
        if row.mark == "@":
            yield f"@@ {row.after} @@"
        elif row.mark == " ":
            yield f"  {row.after}"
        elif row.mark == ">":
            yield f"> {row.after}  (moved)"
        else:
            if row.before:
                yield f"- {row.before}"
            if row.after:
                yield f"+ {row.after}"
    yield from _kernels(diff)
    for name, body in diff.bodies.items():
        yield f"@@ graph @{name} @@"
        yield from unified(body, context, order)


def side_by_side(diff: GraphDiff, context: int, order: bool, width: int | None) -> Iterator[str]:
    """In two columns: folded into the terminal's width, or as wide as they are without one."""
    shown = list(rows(diff, context=context, order=order))
    longest = max((len(row.before) for row in shown if row.mark != "@"), default=0)
    column = longest if width is None else max(10, (width - 5) // 2)
    for row in shown:
        if row.mark == "@":
            yield f"@@ {row.after} @@"
            continue
        left, right = _folded(row.before, column, width), _folded(row.after, column, width)
        for at in range(max(len(left), len(right))):
            one = left[at] if at < len(left) else ""
            two = right[at] if at < len(right) else ""
            yield f"{row.mark} {one.ljust(column)} | {two}".rstrip()
    yield from _kernels(diff)
    for name, body in diff.bodies.items():
        yield f"@@ graph @{name} @@"
        yield from side_by_side(body, context, order, width)


def _kernels(diff: GraphDiff) -> Iterator[str]:
    for name, lines in diff.kernels.items():
        yield f"@@ kernel @{name} @@"
        yield from lines


def _folded(text: str, column: int, width: int | None) -> list[str]:
    if width is None or len(text) <= column:
        return [text]
    return textwrap.wrap(text, column, subsequent_indent="  ", break_on_hyphens=False)
