"""A graph of Dynamo as rows of plain data, which print as Python and can be taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import _get_qualified_name

from deepcompile.ir.origins import origin_of

INDENT = "    "


_SIGNS: Mapping[str, str] = {
    f"operator.{name}": sign
    for name, sign in {
        "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%",
        "pow": "**", "matmul": "@", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">",
        "ge": ">=", "and_": "&", "or_": "|", "xor": "^",
    }.items()
}  # fmt: skip


_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "__iadd__", "__setitem__")


class CannotPrint(Exception):
    """Something in a graph has no text that Python reads back."""


@dataclass(frozen=True)
class Ref:
    """The value of another row, by its name."""

    name: str


@dataclass(frozen=True)
class Row:
    """One value of a program.

    Attributes:
        target: a function as Python spells it, or the name of a method.
        origin: the user's line, where it is known.
    """

    name: str
    kind: Literal["call", "method"]
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    origin: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the rows and inputs that it reads, in order, each once."""
        return tuple(dict.fromkeys(ref.name for ref in refs((self.args, dict(self.kwargs)))))

    @property
    def writes(self) -> str | None:
        """The name of what it writes into, by the convention of torch's names."""
        name = self.target.rpartition(".")[2]
        in_place = name.endswith("_") and not name.endswith("__")
        in_place = in_place or self.target == "operator.setitem" or name in _IN_PLACE
        target = self.args[0] if self.args else None
        return target.name if in_place and isinstance(target, Ref) else None

    @property
    def is_operation(self) -> bool:
        """Whether it counts as one; taking an item of a tuple does not."""
        return self.target != "operator.getitem" or not isinstance(self.args[1], int)

    def __str__(self) -> str:
        args = list(self.args)
        owner = ""
        if self.kind == "method":
            owner, args = f"{spelled(args[0])}.", args[1:]
        inside = [spelled(a) for a in args]
        inside += [f"{name}={spelled(a)}" for name, a in self.kwargs.items()]
        if self.target == "operator.getitem":
            return f"{self.name} = {inside[0]}[{inside[1]}]"
        if self.target in _SIGNS and len(inside) == 2:
            return f"{self.name} = {inside[0]} {_SIGNS[self.target]} {inside[1]}"
        return f"{self.name} = {owner}{self.target}({', '.join(inside)})"


@dataclass(frozen=True)
class Rows:
    """A program: what it is given, its rows in order, and the names that it returns."""

    inputs: tuple[str, ...]
    rows: tuple[Row, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"def fn({', '.join(self.inputs)}):"]
        for row in self.rows:
            where = f"  # {row.origin}" if row.origin else ""
            lines.append(f"{INDENT}{row}{where}")
        returned = "".join(f"{name}, " for name in self.outputs).strip()
        return "\n".join([*lines, f"{INDENT}return ({returned})", ""])

    @property
    def operations(self) -> int:
        """How many operations it has."""
        return sum(row.is_operation for row in self.rows)

    def needed(self) -> Rows:
        """Without what the outputs do not need; writes into what they need stay."""
        keep, count = set(self.outputs), -1
        while count != len(keep):  # what is written may be read before
            count = len(keep)
            for row in reversed(self.rows):
                if row.name in keep or (row.writes is not None and row.writes in keep):
                    keep.update((row.name, *row.reads))
        kept = tuple(row for row in self.rows if row.name in keep)
        inputs = tuple(name for name in self.inputs if name in keep)
        return replace(self, inputs=inputs, rows=kept)

    def function(self) -> Callable[..., Any]:
        """The program as a function, from its own text."""
        return function_of(str(self))


def function_of(text: str) -> Callable[..., Any]:
    """`fn` of a text that `Rows` prints."""
    import operator

    scope: dict[str, Any] = {"torch": torch, "operator": operator}
    exec(compile(text, "<minify>", "exec"), scope)
    found: Callable[..., Any] = scope["fn"]
    return found


def refs(value: Any) -> Iterator[Ref]:
    """All references in nested arguments."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        yield from refs(list(value.values()))
    elif isinstance(value, slice):
        yield from refs([value.start, value.stop, value.step])


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested arguments with each leaf changed."""
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(v, change) for v in (value.start, value.stop, value.step)))
    return change(value)


def spelled(value: Any) -> str:
    """An argument as Python.

    Raises:
        CannotPrint: for what has no such text.
    """
    if isinstance(value, Ref):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, complex | torch.dtype | torch.layout | torch.memory_format):
        return repr(value)
    if value is Ellipsis:
        return "..."
    if isinstance(value, torch.device):
        return f"torch.device('{value}')"
    if isinstance(value, list):
        return f"[{', '.join(map(spelled, value))}]"
    if isinstance(value, tuple):
        return f"({''.join(f'{spelled(v)}, ' for v in value).strip()})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {spelled(v)}" for k, v in value.items()) + "}"
    if isinstance(value, slice):
        return f"slice({spelled(value.start)}, {spelled(value.stop)}, {spelled(value.step)})"
    raise CannotPrint(f"an argument of type {type(value).__name__}")


@dataclass
class Read:
    """What `read_graph` found: rows, and for each of their inputs where its value comes from.

    A source is a position among the graph's inputs, or a tensor that the graph holds.
    """

    rows: Rows
    sources: dict[str, int | torch.Tensor] = field(default_factory=dict)


def read_graph(gm: GraphModule) -> Read:
    """A graph of Dynamo as rows.

    Sizes that are inputs of the graph become sizes of the tensors that have them.

    Raises:
        CannotPrint: the graph has graphs inside it, or arguments without a text.
    """
    return _Reader(gm).read()


class _Reader:
    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.sources: dict[str, int | torch.Tensor] = {}
        self.rows: list[Row] = []
        self.known: dict[Node, Any] = {}

    def read(self) -> Read:
        placeholders = [n for n in self.gm.graph.nodes if n.op == "placeholder"]
        for number, node in enumerate(placeholders):
            if not isinstance(_example(node), torch.SymInt):
                name = f"x{len(self.sources)}"
                self.sources[name] = number
                self.known[node] = Ref(name)
        for node in placeholders:
            if isinstance(_example(node), torch.SymInt):
                self._size(node, placeholders)
        outputs: tuple[str, ...] = ()
        for node in self.gm.graph.nodes:
            if node.op == "output":
                outputs = tuple(ref.name for ref in refs(self._arg(node.args)))
            elif node.op != "placeholder":
                self._node(node)
        rows = Rows(tuple(self.sources), tuple(self.rows), outputs)
        return Read(rows, self.sources)

    def _size(self, node: Node, placeholders: Sequence[Node]) -> None:
        symbol = str(_example(node))
        for other in placeholders:
            value = _example(other)
            if not isinstance(value, torch.Tensor):
                continue
            for dim, size in enumerate(value.shape):
                if str(size) == symbol:
                    target = "torch.ops.aten.sym_size.int"
                    self.rows.append(Row(node.name, "call", target, (self.known[other], dim), {}))
                    self.known[node] = Ref(node.name)
                    return
        if node.users:
            raise CannotPrint(f"size {symbol} is the size of no input")

    def _node(self, node: Node) -> None:
        if node.op == "get_attr":
            value: Any = self.gm
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if not isinstance(value, torch.Tensor):
                raise CannotPrint(f"{node.target}, a {type(value).__name__} inside the graph")
            name = f"x{len(self.sources)}"
            self.sources[name] = value.detach()
            self.known[node] = Ref(name)
            return
        if node.op not in ("call_function", "call_method"):
            raise CannotPrint(f"a node of kind {node.op}")
        kind: Literal["call", "method"] = "call" if node.op == "call_function" else "method"
        target = _function(node.target) if kind == "call" else str(node.target)
        args, kwargs = self._arg(node.args), self._arg(dict(node.kwargs))
        row = Row(node.name, kind, target, args, kwargs, origin_of(node))
        str(row)  # raises for what has no text
        self.rows.append(row)
        self.known[node] = Ref(node.name)

    def _arg(self, value: Any) -> Any:
        def known(leaf: Any) -> Any:
            return self.known[leaf] if isinstance(leaf, Node) else leaf

        plain = torch.fx.node.map_aggregate(value, known)
        return mapped(_plain(plain), lambda leaf: leaf)


def _plain(value: Any) -> Any:
    """Immutable containers of FX as those of Python."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value


def _example(node: Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def _function(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"torch.ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise CannotPrint(f"{target}, an operation on graphs")
    name = _get_qualified_name(target).replace("_operator.", "operator.", 1)
    if name.startswith("builtins."):
        return name.removeprefix("builtins.")
    if not name.startswith(("torch.", "operator.")):
        raise CannotPrint(f"{name}, which is not in torch")
    return name
