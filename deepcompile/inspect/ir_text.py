"""Graphs from their text, as lines: names, inputs, types and origins. Imports no torch.

`deepcompile.ir.graph_parser` rebuilds graphs that run; this reads only what a viewer needs, is fast
(20,000 nodes in a fraction of a second) and takes any text: what it does not know is kept in
`unknown`. What the text looks like: `deepcompile.ir.graph_printer`.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

RETURN = "return"
"""Name and op of the last line of a graph."""

_CALL = re.compile(r"([^\s(]*)(?: @([^\s(]*))?")
_INPUT = re.compile(r"%([\w.]+)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?')
_ORIGIN = re.compile(r"(.*?:\d+)(?:(?:,? in |,? module[=:] ?| \[| @)([^\s\]]+)\]?)?(.*)$")
_OPENING = re.compile(r"graph(?: @(\S+))?(?: (\w+))? \{")
_KERNEL = re.compile(r"kernel @([\w.]+)")
_SPECIAL = frozenset({"placeholder", "get_attr", "call_module", "call_method", "kernel", "batch"})


class IRNode(NamedTuple):
    """One line of a graph.

    Attributes:
        name: of the value, without `%`; `return` for the last line.
        op: `call`, `placeholder`, `get_attr`, `call_module`, `call_method`, `kernel`, `batch` or
            `return`.
        target: what is called, as `aten.mm.default` or the kernel's name; empty where there is
            nothing beside the name.
        inputs: names of the values that it takes, in the order of the text, with repeats.
        type: of the value, as `f32[2, 4]`; empty where it is not known.
        arguments: the text between the brackets, without them.
        origin: `file:line` of the user's program; empty where it is not known.
        module: path of the module that it comes from, as `layers.0.attn`; empty where the text has
            none.
        line: number of the line in the text, from 1.
        attributes: what is known beside, as `static, segment=1`.
    """

    name: str
    op: str
    target: str
    inputs: tuple[str, ...]
    type: str
    arguments: str
    origin: str
    module: str
    line: int
    attributes: str = ""

    @property
    def label(self) -> str:
        """What it calls, as op counts have it: the target of a call, else the op."""
        return self.target if self.op in _COUNTED_BY_TARGET else self.op

    @property
    def call(self) -> str:
        """The right side of the line, without the origin."""
        if self.op == RETURN:
            return f"return {self.arguments}"
        if self.op == "call":
            return f"{self.target}({self.arguments})"
        target = f" @{self.target}" if self.target else ""
        brackets = self.arguments or self.op not in ("placeholder", "get_attr")
        return f"{self.op}{target}" + (f"({self.arguments})" if brackets else "")

    @property
    def statement(self) -> str:
        """The line without the origin."""
        if self.op == RETURN:
            return self.call
        type_ = f" : {self.type}" if self.type else ""
        attributes = f" {{{self.attributes}}}" if self.attributes else ""
        return f"%{self.name}{type_} = {self.call}{attributes}"


_COUNTED_BY_TARGET = frozenset({"call", "call_module", "call_method"})
_NOT_COUNTED = frozenset({"placeholder", "get_attr", RETURN})


@dataclass(frozen=True)
class IRGraph:
    """A graph as lines.

    Attributes:
        name: of a graph inside another one; else empty.
        kind: `joint`, `forward`, `backward` or `inference`; empty where it is not said.
        nodes: in the order of the text; `return` is the last.
        declarations: lines of symbols and constants, as they are.
        bodies: graphs inside this one.
        kernels: by name, the lines on each kernel: its body, and what it makes.
        unknown: number and text of lines that are nothing known.
        complete: whether its closing bracket was there.
    """

    name: str
    nodes: tuple[IRNode, ...]
    declarations: tuple[str, ...] = ()
    bodies: tuple[IRGraph, ...] = ()
    unknown: tuple[tuple[int, str], ...] = ()
    complete: bool = True
    kind: str = ""
    kernels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> Mapping[str, IRNode]:
        """Nodes by name; the first of those that share one."""
        return {node.name: node for node in reversed(self.nodes)}

    @cached_property
    def users(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the nodes that take a value, by its name."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node.name)
        return {name: tuple(users) for name, users in found.items()}

    def op_counts(self) -> Counter[str]:
        """How often each op is called, as `op_delta` of the run directory counts."""
        return Counter(node.label for node in self.nodes if node.op not in _NOT_COUNTED)

    def around(self, name: str, steps: int) -> set[str]:
        """Names within `steps` uses of `name` in either direction, with it; no `return`."""
        found, waiting = {name}, deque([(name, 0)])
        while waiting:
            current, distance = waiting.popleft()
            if distance == steps or current not in self.by_name:
                continue
            for other in (*self.by_name[current].inputs, *self.users.get(current, ())):
                if other not in found and other != RETURN and other in self.by_name:
                    found.add(other)
                    waiting.append((other, distance + 1))
        return found

    def only(self, names: Iterable[str]) -> IRGraph:
        """The graph of these nodes alone, in their order."""
        kept = frozenset(names)
        return IRGraph(self.name, tuple(node for node in self.nodes if node.name in kept))


def op_delta(before: IRGraph, after: IRGraph) -> dict[str, int]:
    """Ops that `after` has more (positive) or fewer (negative) of than `before`."""
    counts = after.op_counts()
    counts.subtract(before.op_counts())
    return {name: count for name, count in sorted(counts.items()) if count}


def parse_ir(text: str) -> IRGraph:
    """The graph that `text` shows; of text that shows none, one without nodes. Raises nothing."""
    return _Parser(text.split("\n")).graph()


class _Parser:
    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.at = 0

    def graph(self) -> IRGraph:
        """The outermost graph; lines outside it are unknown, but for comments."""
        outer: IRGraph | None = None
        unknown: list[tuple[int, str]] = []
        while self.at < len(self.lines):
            statement = self.lines[self.at].strip()
            self.at += 1
            opening = _OPENING.fullmatch(statement)
            if outer is None and opening is not None:
                outer = self.body(opening)
            elif statement:
                unknown.append((self.at, statement))
        if outer is None:
            return IRGraph("", (), unknown=tuple(unknown), complete=False)
        kept = tuple(entry for entry in unknown if not entry[1].startswith("#"))
        return replace(outer, unknown=outer.unknown + kept) if kept else outer

    def body(self, opening: re.Match[str]) -> IRGraph:
        """Up to the closing bracket. Bodies nest in an own stack: hostile text can nest deep."""
        stack = [_Open(opening)]
        while self.at < len(self.lines):
            statement = self.lines[self.at].strip()
            self.at += 1
            top = stack[-1]
            if statement.startswith("%"):
                node = _node(statement, self.at)
                if node is None:
                    top.unknown.append((self.at, statement))
                else:
                    top.nodes.append(node)
            elif not statement or statement.startswith("#"):
                continue
            elif statement == "}":
                stack.pop()
                if not stack:
                    return top.closed(True)
                stack[-1].bodies.append(top.closed(True))
            elif statement.startswith("kernel @"):
                self.kernel(statement, top)
            elif opening_ := _OPENING.fullmatch(statement):
                stack.append(_Open(opening_))
            elif statement.startswith(("symbols ", "constant @")):
                top.declarations.append(statement)
            elif statement == RETURN or statement.startswith("return "):
                top.nodes.append(_return(statement, self.at))
            else:
                top.unknown.append((self.at, statement))
        while len(stack) > 1:
            inner = stack.pop()
            stack[-1].bodies.append(inner.closed(False))
        return stack[0].closed(False)

    def kernel(self, statement: str, graph: _Open) -> None:
        """Lines on a kernel: one that says what it makes or is, or its body up to the bracket."""
        name = _KERNEL.match(statement)
        if name is None:
            graph.unknown.append((self.at, statement))
            return
        lines = graph.kernels.setdefault(name[1], [])
        lines.append(statement)
        if not statement[name.end() :].startswith("("):
            return
        while self.at < len(self.lines):
            line = self.lines[self.at].rstrip()
            self.at += 1
            lines.append(line)
            if line.strip() == "}":
                return


class _Open:
    """A graph whose closing bracket has not come yet."""

    def __init__(self, opening: re.Match[str]) -> None:
        self.name, self.kind = opening[1] or "", opening[2] or ""
        self.kernels: dict[str, list[str]] = {}
        self.nodes: list[IRNode] = []
        self.declarations: list[str] = []
        self.bodies: list[IRGraph] = []
        self.unknown: list[tuple[int, str]] = []

    def closed(self, complete: bool) -> IRGraph:
        return IRGraph(
            self.name, tuple(self.nodes), tuple(self.declarations), tuple(self.bodies),
            tuple(self.unknown), complete, self.kind,
            {name: tuple(lines) for name, lines in self.kernels.items()},
        )  # fmt: skip


def _node(statement: str, line: int) -> IRNode | None:
    left, equals, right = statement.partition(" = ")
    name, colon, type_ = left[1:].partition(" : ")
    if not equals or not name or " " in name:
        return None
    right, origin, module = _split_comment(right)
    call = _CALL.match(right)
    if call is None or not call[1]:
        return None
    rest, attributes = right[call.end() :], ""
    if rest.endswith("}"):
        rest, _, attributes = rest[:-1].rpartition(" {")
    arguments = rest[1:-1] if rest.startswith("(") and rest.endswith(")") else rest.strip()
    word, target = call[1], call[2]
    if word in _SPECIAL:
        op, target = word, target or ""
    else:
        op, target = "call", word + (f" @{target}" if target else "")
    return IRNode(
        name, op, target, _inputs(arguments), type_.strip() if colon else "", arguments, origin,
        module, line, attributes,
    )  # fmt: skip


def _return(statement: str, line: int) -> IRNode:
    arguments, origin, module = _split_comment(statement.removeprefix(RETURN).strip())
    inputs = _inputs(arguments)
    return IRNode(RETURN, RETURN, "", inputs, "", arguments, origin, module, line)


def _inputs(arguments: str) -> tuple[str, ...]:
    if '"' in arguments:
        arguments = _STRING.sub('""', arguments)
    return tuple(_INPUT.findall(arguments))


def _split_comment(text: str) -> tuple[str, str, str]:
    """The text before the comment, and origin and module path that it says."""
    if "  # " not in text:
        return text, "", ""
    searched = _STRING.sub(_blank, text) if '"' in text else text
    at = searched.find("  # ")
    if at < 0:
        return text, "", ""
    before, comment = text[:at].rstrip(), text[at + 4 :]
    if " " not in comment:
        return before, comment, ""
    known = _ORIGIN.match(comment)
    if known is None or known[2] is None:
        return before, comment, ""
    return before, known[1], known[2]


def _blank(string: re.Match[str]) -> str:
    return '"' * len(string[0])
