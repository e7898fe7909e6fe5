"""Our own text for ATen graphs: one op a line, and back again.

    graph {
      symbols s0 = 5 in [2, int_oo]
      %n : sym(s0) = placeholder
      %x : f32[s0, 4] = placeholder
      %w : f32[4, 4]{1, 4} = placeholder
      %mm : f32[s0, 4] = aten.mm.default(%x, %w)  # model.py:12
      %k : f32[s0, 4] = kernel @row_0(%mm, %n)  # model.py:13
      return (%k, none)
    }

Types are those of `meta["val"]` (see `graph_types`); nodes without it have none. Constants that the
graph holds come first (`constant @c : f32[2] = [1.0, 2.0]`), so do graphs inside it (`graph @body
{`). A trailing comment is the line of the user's program. A call of an object with a `nest` prints
as `kernel @name`; `parse_graph` takes such objects by name.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from deepcompile.errors import IRSyntaxError
from deepcompile.ir.graph_types import (
    SYMBOLIC,
    SymbolTable,
    expression,
    print_type,
    symbols_in,
)

MAX_CONSTANT = 64
"""Constants of more elements print as `...` and must be given to the parser."""

_PLAIN_MODULES = {"_operator": "operator", "math": "math", "torch": "torch"}
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


class UnboundKernel:
    """Stands for `kernel @name` in parsed text when no kernel of that name was given."""

    nest = None

    def __init__(self, name: str) -> None:
        self.name = self.__name__ = self.__qualname__ = name
        self.__module__ = "deepcompile.kernels"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"kernel @{self.name} was not given to parse_graph, so it cannot run")


# ---------------------------------------------------------------------------------- printing


def print_graph(graph: GraphModule, *, origins: bool = True, name: str = "") -> str:
    """The text of `graph`; `origins=False` leaves out the trailing `# file:line`."""
    return "\n".join(_graph_lines(graph, origins, name)) + "\n"


def _graph_lines(graph: GraphModule, origins: bool, name: str) -> list[str]:
    lines = [f"graph @{name} {{" if name else "graph {"]
    values = [node.meta["val"] for node in graph.graph.nodes if "val" in node.meta]
    for symbol, (hint, bounds) in symbols_in(values).items():
        where = f" in [{bounds}]" if bounds else ""
        lines.append(f"  symbols {symbol} = {'?' if hint is None else hint}{where}")
    for attribute in dict.fromkeys(
        str(n.target) for n in graph.graph.nodes if n.op in ("get_attr", "call_module")
    ):
        lines += ["  " + line for line in _attribute_lines(graph, attribute, origins)]
    lines += ["  " + _node_line(node, origins) for node in graph.graph.nodes]
    return [*lines, "}"]


def _attribute_lines(graph: GraphModule, target: str, origins: bool) -> list[str]:
    value: Any = operator.attrgetter(target)(graph)
    if isinstance(value, GraphModule):
        return _graph_lines(value, origins, target)
    if not isinstance(value, torch.Tensor):
        return [f"constant @{target} : opaque = ..."]
    fake = isinstance(value, torch._subclasses.FakeTensor) or value.is_meta
    data = "..."
    if not fake and value.layout == torch.strided and value.numel() <= MAX_CONSTANT:
        data = print_argument(value.detach().tolist())
    return [f"constant @{target} : {print_type(value)} = {data}"]


def _node_line(node: Node, origins: bool) -> str:
    if node.op == "output":
        return f"return {print_argument(node.args[0])}"
    type_text = f" : {print_type(node.meta['val'])}" if "val" in node.meta else ""
    line = f"%{node.name}{type_text} = {_call(node)}"
    origin = origin_of(node) if origins else None
    return f"{line}  # {origin}" if origin else line


def _call(node: Node) -> str:
    arguments = [print_argument(a) for a in node.args]
    arguments += [f"{key}={print_argument(a)}" for key, a in node.kwargs.items()]
    inside = ", ".join(arguments)
    if node.op == "placeholder":
        target = "" if node.target == node.name else f" @{node.target}"
        return f"placeholder{target}" + (f"({inside})" if inside else "")
    if node.op == "get_attr":
        return f"get_attr @{node.target}"
    if node.op in ("call_module", "call_method"):
        return f"{node.op} @{node.target}({inside})"
    if hasattr(node.target, "nest"):
        return f"kernel @{kernel_name(node.target)}({inside})"
    return f"{_function_name(node.target)}({inside})"


def kernel_name(kernel: Any) -> str:
    """The name under which a kernel object prints."""
    return str(getattr(kernel, "name", None) or kernel.__name__)


@functools.cache
def _function_name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target)
    module = _PLAIN_MODULES.get(getattr(target, "__module__", ""))
    name = getattr(target, "__name__", "")
    if module is not None and getattr(_module(module), name, None) is target:
        return f"{module}.{name}"
    return f"python.{getattr(target, '__module__', '?')}.{name or type(target).__name__}"


def _module(name: str) -> Any:
    return {"operator": operator, "math": math, "torch": torch}[name]


def print_argument(value: Any) -> str:
    """One argument as text."""
    if isinstance(value, Node):
        return f"%{value.name}"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(print_argument, value)) + "]"
    if isinstance(value, tuple):
        inner = ", ".join(map(print_argument, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(k))}: {print_argument(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, slice):
        return f"slice({', '.join(map(print_argument, (value.start, value.stop, value.step)))})"
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if isinstance(value, torch.device):
        return f'device("{value}")'
    if isinstance(value, SYMBOLIC):
        return f"sym({expression(value)})"
    if value is Ellipsis:
        return "..."
    if isinstance(value, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return f"op({_function_name(value)})"
    return f"opaque({json.dumps(type(value).__name__)})"


def origin_of(node: Node) -> str | None:
    """`file:line` of the user's program that `node` came from; None when it is not known.

    The innermost frame outside torch and this package; relative to the working directory below it.
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
        if not path.startswith((_OWN, _TORCH, "<")):
            return f"{_shown(path)}:{line}"
    return f"{_shown(frames[-1][0])}:{frames[-1][1]}" if frames else None


def _shown(path: str) -> str:
    here = os.getcwd() + os.sep
    return path.removeprefix(here)


# ----------------------------------------------------------------------------------- parsing


def parse_graph(
    text: str,
    kernels: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> GraphModule:
    """The graph that prints as `text`, with fake tensors rebuilt in `meta["val"]`.

    `kernels` are the objects that `kernel @name` calls (`UnboundKernel` for those not given),
    `constants` the values of constants printed as `...`. Raises `IRSyntaxError` with the line.
    """
    return _Parser(text, kernels or {}, constants or {}).parse()


_STATEMENT = re.compile(r"%([\w.]+)\s*(?::\s*)?")
_SYMBOL = re.compile(r"symbols (\w+) = (\?|-?\d+)(?: in \[(-?\w+), (-?\w+)\])?$")
_NUMBER = re.compile(r"-?(?:inf|nan|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
_WORD = re.compile(r"[A-Za-z_][\w.]*")
_NAME = re.compile(r"[\w.]+")
_COMMENT = re.compile(r"\s*#\s*(.*)$")
_WORDS: Mapping[str, Any] = {"none": None, "true": True, "false": False, "inf": math.inf}


class _Scanner:
    """A position in one line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1

    def peek(self) -> str:
        self.skip()
        return self.text[self.at : self.at + 1]

    def eat(self, token: str) -> bool:
        self.skip()
        found = self.text.startswith(token, self.at)
        self.at += len(token) if found else 0
        return found

    def expect(self, token: str) -> None:
        if not self.eat(token):
            got = self.text[self.at : self.at + 20] or "the end of the line"
            raise ValueError(f"expected {token!r} before {got!r}")

    def match(self, pattern: re.Pattern[str]) -> str | None:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def balanced(self, closing: str) -> str:
        """The text up to the bracket `closing` that ends this level; moves past it."""
        start, depth = self.at, 0
        while self.at < len(self.text):
            character = self.text[self.at]
            self.at += 1
            if depth == 0 and character == closing:
                return self.text[start : self.at - 1]
            depth += (character in "([{") - (character in ")]}")
        raise ValueError(f"missing {closing!r}")


def _split(text: str) -> list[str]:
    """Parts between the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text.strip() else []


class _Parser:
    def __init__(self, text: str, kernels: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
        self.lines = text.splitlines()
        self.line = 0
        self.kernels: dict[str, Any] = dict(kernels)
        self.constants = constants
        self.nodes: dict[str, Node] = {}
        self.table = SymbolTable()

    def parse(self) -> GraphModule:
        statement = self.next_statement()
        if not re.fullmatch(r"graph (?:@[\w.]+ )?{", statement):
            raise self.error("expected 'graph {'")
        graph = self.body()
        if any(
            line.strip() and not line.strip().startswith("#") for line in self.lines[self.line :]
        ):
            self.next_statement()
            raise self.error("text after the end of the graph")
        return graph

    def error(self, detail: str) -> IRSyntaxError:
        text = self.lines[self.line - 1] if 0 < self.line <= len(self.lines) else ""
        return IRSyntaxError(detail, max(self.line, 1), text)

    def next_statement(self) -> str:
        while self.line < len(self.lines):
            self.line += 1
            statement = self.lines[self.line - 1].strip()
            if statement and not statement.startswith("#"):
                return statement
        raise self.error("the text ends inside a graph")

    def body(self) -> GraphModule:
        outer_nodes, outer_table = self.nodes, self.table
        self.nodes, self.table = {}, SymbolTable()
        graph, root = Graph(), torch.nn.Module()
        while (statement := self.next_statement()) != "}":
            try:
                self.statement(statement, graph, root)
            except (ValueError, TypeError, AttributeError, RuntimeError) as error:
                raise self.error(str(error)) from error
        if not graph.nodes or next(iter(reversed(graph.nodes))).op != "output":
            raise self.error("the graph does not end with 'return'")
        self.nodes, self.table = outer_nodes, outer_table
        return GraphModule(root, graph)

    def statement(self, text: str, graph: Graph, root: torch.nn.Module) -> None:
        if text.startswith("symbols "):
            match = _SYMBOL.match(text)
            if match is None:
                raise ValueError("expected 'symbols NAME = HINT in [LOW, HIGH]'")
            hint = None if match[2] == "?" else int(match[2])
            self.table.declare(match[1], hint, (match[3], match[4]) if match[3] else None)
        elif text.startswith("graph @"):
            self.attach(root, text.removeprefix("graph @").removesuffix("{").strip(), self.body())
        elif text.startswith("constant @"):
            self.constant(_Scanner(text.removeprefix("constant @")), root)
        elif text.startswith("return"):
            scanner = _Scanner(text.removeprefix("return"))
            graph.output(self.argument(scanner))
            self.end(scanner)
        else:
            self.node(text, graph)

    def attach(self, root: torch.nn.Module, target: str, value: Any) -> None:
        *path, last = target.split(".")
        for part in path:
            if not hasattr(root, part):
                root.add_module(part, torch.nn.Module())
            root = getattr(root, part)
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
            root.register_buffer(last, value)
        else:
            setattr(root, last, value)

    def constant(self, scanner: _Scanner, root: torch.nn.Module) -> None:
        name = scanner.match(_NAME) or ""
        scanner.expect(":")
        value = self.type(scanner)
        scanner.expect("=")
        if name in self.constants:
            value = self.constants[name]
        elif scanner.eat("..."):
            raise ValueError(f"constant @{name} is too large for the text; pass constants={{...}}")
        else:
            data = self.argument(scanner)
            value = torch.tensor(data, dtype=value.dtype).reshape(tuple(value.shape))
        self.attach(root, name, value)

    def node(self, text: str, graph: Graph) -> None:
        match = _STATEMENT.match(text)
        if match is None:
            raise ValueError("expected '%name : type = op(...)'")
        name = match[1]
        if name in self.nodes:
            raise ValueError(f"%{name} is defined twice")
        scanner = _Scanner(text)
        scanner.at = match.end()
        meta = {}
        if ":" in match[0]:
            value = self.type(scanner)
            if value is not _OPAQUE:
                meta["val"] = value
        scanner.expect("=")
        word = scanner.match(_WORD)
        if word is None:
            raise ValueError("expected an op")
        node = self.call(word, name, scanner, graph)
        # fx would number a name that shadows a builtin; the text says what it was.
        node.name = name
        node.meta |= meta
        origin = self.end(scanner)
        if origin:
            node.meta["origin"] = origin
        self.nodes[name] = node

    def call(self, word: str, name: str, scanner: _Scanner, graph: Graph) -> Node:
        if word in ("placeholder", "get_attr", "call_module", "call_method", "kernel"):
            target: Any = name
            if scanner.eat("@"):
                target = scanner.match(_NAME) or ""
            elif word != "placeholder":
                scanner.expect("@")
            has_arguments = word in ("call_module", "call_method", "kernel")
            args, kwargs = self.arguments(scanner, required=has_arguments)
            if word == "kernel":
                target = self.kernels.setdefault(target, UnboundKernel(target))
                word = "call_function"
            return graph.create_node(word, target, args, kwargs, name=name)
        function = _function(word)
        args, kwargs = self.arguments(scanner, required=True)
        return graph.create_node("call_function", function, args, kwargs, name=name)

    def end(self, scanner: _Scanner) -> str | None:
        comment = _COMMENT.match(scanner.text, scanner.at)
        if comment is not None:
            return comment[1]
        if scanner.peek():
            raise ValueError(f"unexpected {scanner.text[scanner.at :]!r}")
        return None

    def type(self, scanner: _Scanner) -> Any:
        for opening, closing, build in (("(", ")", tuple), ("[", "]", list)):
            if scanner.eat(opening):
                items = []
                while not scanner.eat(closing):
                    items.append(self.type(scanner))
                    scanner.eat(",")
                return _OPAQUE if _OPAQUE in items else build(items)
        number = scanner.match(_NUMBER)
        if number is not None:
            return _to_number(number)
        word = scanner.match(_WORD)
        if word is None:
            raise ValueError("expected a type")
        if word in _WORDS:
            return _WORDS[word]
        if word == "opaque":
            return _OPAQUE
        if word in ("sym", "symfloat", "symbool"):
            scanner.expect("(")
            return self.table.symbolic(word, scanner.balanced(")"))
        scanner.expect("[")
        sizes = _split(scanner.balanced("]"))
        strides = _split(scanner.balanced("}")) if scanner.eat("{") else None
        offset = scanner.balanced("}") if scanner.eat("+{") else None
        device = (scanner.match(re.compile(r"[\w:]+")) or "") if scanner.eat("@") else "cpu"
        return self.table.tensor(word, sizes, strides, device, offset)

    def arguments(
        self, scanner: _Scanner, *, required: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if not required and scanner.peek() != "(":
            return (), {}
        scanner.expect("(")
        keyword = re.compile(r"([A-Za-z_]\w*)=")
        while not scanner.eat(")"):
            key = scanner.match(keyword)
            value = self.argument(scanner)
            if key is not None:
                kwargs[key.removesuffix("=")] = value
            else:
                args.append(value)
            if not scanner.eat(",") and scanner.peek() != ")":
                raise ValueError("expected ',' or ')' in the arguments")
        return tuple(args), kwargs

    def argument(self, scanner: _Scanner) -> Any:
        if scanner.eat("%"):
            name = scanner.match(_NAME) or ""
            if name not in self.nodes:
                raise ValueError(f"%{name} is used before it is defined")
            return self.nodes[name]
        if scanner.eat("..."):
            return ...
        if scanner.peek() == '"':
            value, length = json.JSONDecoder().raw_decode(scanner.text[scanner.at :])
            scanner.at += length
            return value
        if scanner.eat("["):
            return self.items(scanner, "]")
        if scanner.eat("("):
            return tuple(self.items(scanner, ")"))
        if scanner.eat("{"):
            return self.pairs(scanner)
        number = scanner.match(_NUMBER)
        if number is not None:
            return _to_number(number)
        word = scanner.match(_WORD)
        if word is None:
            raise ValueError(f"expected an argument before {scanner.text[scanner.at :]!r}")
        return self.word(word, scanner)

    def items(self, scanner: _Scanner, closing: str) -> list[Any]:
        items = []
        while not scanner.eat(closing):
            items.append(self.argument(scanner))
            if not scanner.eat(",") and scanner.peek() != closing:
                raise ValueError(f"expected ',' or {closing!r}")
        return items

    def pairs(self, scanner: _Scanner) -> dict[str, Any]:
        pairs = {}
        while not scanner.eat("}"):
            key = self.argument(scanner)
            scanner.expect(":")
            pairs[key] = self.argument(scanner)
            if not scanner.eat(",") and scanner.peek() != "}":
                raise ValueError("expected ',' or '}'")
        return pairs

    def word(self, word: str, scanner: _Scanner) -> Any:
        if word in _WORDS:
            return _WORDS[word]
        if word.startswith("torch."):
            value = getattr(torch, word.removeprefix("torch."), None)
            if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
                return value
        scanner.expect("(")
        inside = scanner.balanced(")")
        if word == "sym":
            return self.table.symbolic("sym", inside)
        if word == "device":
            return torch.device(json.loads(inside))
        if word == "slice":
            inner = _Scanner(f"{inside})")
            return slice(*self.items(inner, ")"))
        if word == "complex":
            real, imaginary = inside.split(",")
            return complex(float(real), float(imaginary))
        if word == "op":
            return _function(inside)
        if word == "opaque":
            raise ValueError(f"a value of type {inside} has no text and cannot be rebuilt")
        raise ValueError(f"unknown argument {word!r}")


_OPAQUE = object()


def _to_number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    """The op that prints as `name`. Raises ValueError when there is none."""
    if name == "getitem":
        return operator.getitem
    first, *rest = name.split(".")
    if first in ("operator", "math", "torch") and len(rest) == 1:
        found: Any = getattr(_module(first), rest[0], None)
    elif first == "python":
        raise ValueError(f"the Python function {'.'.join(rest)} cannot be rebuilt from text")
    else:
        found = _dig(torch.ops, [first, *rest])
    if not callable(found):
        raise ValueError(f"unknown op {name!r}")
    return found  # type: ignore[no-any-return]


def _dig(root: Any, path: Iterable[str]) -> Any:
    for part in path:
        try:
            root = getattr(root, part)
        except (AttributeError, RuntimeError):
            return None
    return root
