"""What differs between two graphs, node by node; see `match` for which node is which."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from deepcompile.inspect.ir_text import RETURN, IRGraph, IRNode, op_delta
from deepcompile.inspect.match import match_nodes

Kind = Literal["same", "renamed", "changed", "moved", "added", "removed"]
_INPUT = re.compile(r"%([\w.]+)")
_IS = re.compile(r"kernel @[\w.]+ is @([\w.]+)")


@dataclass(frozen=True)
class Pair:
    """A node before and after; None where it is not there.

    A node is `changed` when it has other arguments, inputs or type, beyond other names of the same
    nodes; `renamed` when only its own name is another; `moved` when only its place is.
    """

    kind: Kind
    before: IRNode | None
    after: IRNode | None


@dataclass(frozen=True)
class GraphDiff:
    """The difference of two graphs.

    Attributes:
        pairs: all nodes, in an order that both agree with but for what moved.
        ops: ops that the second has more (positive) or fewer (negative) of.
        declarations: lines of symbols and constants that only one has, with `-` or `+`.
        bodies: differences of graphs inside, by name.
        kernels: by name, how the body of a kernel differs, as lines with `-` and `+`.
    """

    pairs: tuple[Pair, ...]
    ops: Mapping[str, int]
    declarations: tuple[str, ...] = ()
    bodies: Mapping[str, GraphDiff] = field(default_factory=dict)
    kernels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def count(self, kind: Kind) -> int:
        """How many nodes of a kind, without bodies."""
        return sum(pair.kind == kind for pair in self.pairs)

    def differs(self, *, names: bool = True, order: bool = True) -> bool:
        """Whether anything does; `names` and `order` say whether other names and places count."""
        ignored = {"same"} | (set() if names else {"renamed"}) | (set() if order else {"moved"})
        return (
            any(pair.kind not in ignored for pair in self.pairs)
            or bool(self.declarations or self.kernels)
            or any(body.differs(names=names, order=order) for body in self.bodies.values())
        )


def diff_graphs(before: IRGraph, after: IRGraph) -> GraphDiff:
    """Match the nodes of two graphs and say what became of each.

    Texts of early versions do not say the kind of the graph, nor attributes of nodes: against one
    of them these are no difference.
    """
    if bool(before.kind) != bool(after.kind):
        before, after = _as_early_texts(before), _as_early_texts(after)
    found = match_nodes(before, after)
    names = {before.nodes[left].name: after.nodes[right].name for left, right in found.items()}
    in_place = _longest_rising(sorted(found.items()))
    old, new = set(before.declarations), set(after.declarations)
    return GraphDiff(
        tuple(_pairs(before, after, found, in_place, names)),
        op_delta(before, after),
        tuple(
            [f"- {line}" for line in before.declarations if line not in new]
            + [f"+ {line}" for line in after.declarations if line not in old]
        ),
        _bodies(before, after),
        dict(_kernels(before, after, found)),
    )


def _as_early_texts(graph: IRGraph) -> IRGraph:
    """Without attributes, and with tuples of one type printed as `(f32[2])`."""
    nodes = (n._replace(attributes="", type=n.type.replace(",)", ")")) for n in graph.nodes)
    bodies = tuple(map(_as_early_texts, graph.bodies))
    return replace(graph, nodes=tuple(nodes), bodies=bodies, kind="")


def _kernels(
    before: IRGraph, after: IRGraph, found: Mapping[int, int]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Kernels that two matched nodes call and whose texts differ beyond their names."""
    if not (before.kernels and after.kernels):
        return
    for left, right in found.items():
        old, new = before.nodes[left], after.nodes[right]
        if old.op == new.op == "kernel":
            one, two = _kernel_lines(before, old.target), _kernel_lines(after, new.target)
            if one and two and one != two:
                lines = difflib.unified_diff(one, two, lineterm="", n=2)
                yield new.target, tuple(list(lines)[2:])


def _kernel_lines(graph: IRGraph, name: str) -> list[str]:
    """What is known of a kernel, without its own name; that of another when it is the same."""
    lines = graph.kernels.get(name, ())
    if lines and (same := _IS.fullmatch(lines[0])) is not None:
        other = graph.kernels.get(same[1], ())
        return _kernel_lines_of(other, same[1], 1) + _kernel_lines_of(lines[1:], name, 0)
    return _kernel_lines_of(lines, name, 0)


def _kernel_lines_of(lines: Sequence[str], name: str, drop: int) -> list[str]:
    kept = lines[: len(lines) - drop]
    return [line.replace(f"@{name}", "@kernel", 1).strip() for line in kept]


def _bodies(before: IRGraph, after: IRGraph) -> dict[str, GraphDiff]:
    old, new = ({body.name: body for body in graph.bodies} for graph in (before, after))
    empty = IRGraph("", ())
    found = {}
    for name in dict.fromkeys([*old, *new]):
        diff = diff_graphs(old.get(name, empty), new.get(name, empty))
        if diff.differs():
            found[name] = diff
    return found


def _pairs(
    before: IRGraph,
    after: IRGraph,
    found: Mapping[int, int],
    in_place: Mapping[int, int],
    names: Mapping[str, str],
) -> Iterator[Pair]:
    """Both orders woven together along the nodes that did not move; what went comes first."""
    partner = {right: left for left, right in found.items()}
    next_left = 0
    waiting: list[Pair] = []
    for right, node in enumerate(after.nodes):
        left = partner.get(right)
        if left is None:
            waiting.append(Pair("added", None, node))
            continue
        old = before.nodes[left]
        kind = _kind(old, node, names)
        if left not in in_place:
            waiting.append(Pair("moved" if kind in ("same", "renamed") else kind, old, node))
            continue
        yield from _removed(before, found, range(next_left, left))
        yield from waiting
        waiting = []
        next_left = left + 1
        yield Pair(kind, old, node)
    yield from _removed(before, found, range(next_left, len(before.nodes)))
    yield from waiting


def _removed(before: IRGraph, found: Mapping[int, int], where: range) -> Iterator[Pair]:
    return (Pair("removed", before.nodes[left], None) for left in where if left not in found)


def _kind(before: IRNode, after: IRNode, names: Mapping[str, str]) -> Kind:
    # The common case first: nothing at all differs. Then the names of inputs as they are now.
    same = before.arguments == after.arguments and all(
        names.get(name, name) == name for name in before.inputs
    )
    if not same:
        renamed = _INPUT.sub(lambda m: f"%{names.get(m[1], m[1])}", before.arguments)
        same = renamed == after.arguments
    same = same and before.type == after.type and before.attributes == after.attributes
    if not same or before.op != after.op:
        return "changed"
    if before.target != after.target:
        return "renamed" if before.op == "kernel" else "changed"
    return "same" if before.name == after.name else "renamed"


def _longest_rising(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The longest part of `pairs` that rises in both (patience sorting)."""
    tops: list[int] = []
    at_top: list[int] = []
    previous: list[int] = []
    for at, (_, right) in enumerate(pairs):
        pile = bisect_left(tops, right)
        previous.append(at_top[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(right)
            at_top.append(at)
        else:
            tops[pile] = right
            at_top[pile] = at
    kept: dict[int, int] = {}
    at = at_top[-1] if at_top else -1
    while at >= 0:
        kept[pairs[at][0]] = pairs[at][1]
        at = previous[at]
    return kept


# -- text ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a difference: what was, and what is; equal texts are context."""

    mark: Literal[" ", "-", "+", "~", ">", "@"]
    before: str
    after: str


def rows(diff: GraphDiff, *, context: int = 3, order: bool = True) -> Iterator[Row]:
    """The differences with `context` lines around each.

    Marks: `-` removed, `+` added, `~` changed (both texts), `>` only moved, `@` a place where lines
    are left out. A node that only has another name is context: one value more renumbers thousands.
    """
    shown = [_row(pair, order) for pair in diff.pairs]
    near = bytearray(len(shown))
    for at, row in enumerate(shown):
        if row.mark != " ":
            low, high = max(0, at - context), min(len(shown), at + context + 1)
            near[low:high] = b"\x01" * (high - low)
    skipped = False
    for at, row in enumerate(shown):
        if not near[at]:
            skipped = True
            continue
        if skipped:
            place = diff.pairs[at].after or diff.pairs[at].before
            yield Row("@", "", f"line {place.line}" if place is not None else "")
        skipped = False
        yield row


def _row(pair: Pair, order: bool) -> Row:
    before, after = (_line(node) for node in (pair.before, pair.after))
    if pair.kind == "removed":
        return Row("-", before, "")
    if pair.kind == "added":
        return Row("+", "", after)
    if pair.kind == "changed":
        return Row("~", before, after)
    if pair.kind == "moved" and order:
        return Row(">", before, after)
    return Row(" ", after, after)


def _line(node: IRNode | None) -> str:
    if node is None:
        return ""
    origin = f"  # {node.origin}" if node.origin else ""
    return f"{_short(node)}{origin}"


def _short(node: IRNode) -> str:
    """The statement; of a return with many values the start is enough to see what it is."""
    text = node.statement
    return text if node.op != RETURN or len(text) <= 2000 else f"{text[:2000]}..."
