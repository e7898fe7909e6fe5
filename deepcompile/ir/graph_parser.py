"""Graphs from their text; see `graph_printer` for what it looks like."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule

from deepcompile.errors import IRSyntaxError
from deepcompile.ir.batch_op import BatchOp
from deepcompile.ir.constant_text import MISSING, from_items, read_packed
from deepcompile.ir.function_names import function_named
from deepcompile.ir.graph_printer import KIND
from deepcompile.ir.graph_types import OPAQUE, SymbolTable
from deepcompile.ir.kernel_op_text import KernelReader
from deepcompile.ir.node_attributes import parse_attributes
from deepcompile.ir.origins import trace_of


class UnboundKernel:
    """Stands for `kernel @name` in parsed text when no kernel of that name was given."""

    nest = None

    def __init__(self, name: str) -> None:
        self.name = self.__name__ = self.__qualname__ = name
        self.__module__ = "deepcompile.kernels"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"kernel @{self.name} was not given to parse_graph, so it cannot run")


def parse_graph(
    text: str,
    kernels: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    *,
    without_values: bool = False,
) -> GraphModule:
    """The graph that prints as `text`, with fake tensors rebuilt in `meta["val"]`.

    Args:
        kernels: what `kernel @name` calls where the text does not define it; `UnboundKernel` stands
            for those not given.
        constants: the values of constants printed as `...`.
        without_values: let fake tensors stand for those not given, in place of an error.

    Raises:
        IRSyntaxError: with the line.
    """
    return _Parser(text, kernels or {}, constants or {}, without_values).parse()


_HEADER = re.compile(r"graph (?:@([\w.]+) )?(?:(joint|forward|backward|inference) )?{")
_ORIGIN = re.compile(r'([^"]+):(\d+)')
_STATEMENT = re.compile(r"%([\w.]+)\s*(?::\s*)?")
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
    def __init__(
        self,
        text: str,
        kernels: Mapping[str, Any],
        constants: Mapping[str, Any],
        without_values: bool,
    ) -> None:
        self.lines = text.removesuffix("\n").split("\n")
        self.without_values = without_values
        self.joint = False
        self.defined = KernelReader()
        self.line = 0
        self.kernels: dict[str, Any] = dict(kernels)
        self.constants = constants
        self.graphs: dict[str, GraphModule] = {}
        self.nodes: dict[str, Node] = {}
        self.table = SymbolTable()

    def parse(self) -> GraphModule:
        header = _HEADER.fullmatch(self.next_statement())
        if header is None:
            raise self.error("expected 'graph {'")
        graph = self.body(header[2])
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

    def body(self, kind: str | None = None) -> GraphModule:
        outer = self.nodes, self.table, self.joint, self.defined
        self.nodes, self.table, self.joint = {}, SymbolTable(), kind == "joint"
        self.defined = KernelReader()
        graph, root = Graph(), torch.nn.Module()
        while (statement := self.next_statement()) != "}":
            try:
                self.statement(statement, graph, root)
            except (ValueError, TypeError, AttributeError, RuntimeError) as error:
                raise self.error(str(error)) from error
        if not graph.nodes or next(iter(reversed(graph.nodes))).op != "output":
            raise self.error("the graph does not end with 'return'")
        self.bind(graph)
        self.nodes, self.table, self.joint, self.defined = outer
        result = _LazyGraphModule(root, graph)
        if kind is not None:
            result.meta[KIND] = kind
        return result

    def bind(self, graph: Graph) -> None:
        """Let calls of kernels call those that the text defines after them."""
        for node in graph.nodes:
            if isinstance(node.target, UnboundKernel):
                node.target = self.defined.ops.get(node.target.name, node.target)

    def kernel(self, first: str) -> None:
        """The definition of a kernel: one line, or a nest of several."""
        if not first.endswith(("{", "(")):
            self.defined.line(first)
            return
        start = self.line - 1
        while self.next_statement() != "}":
            pass
        try:
            self.defined.nest("\n".join(self.lines[start : self.line]))
        except IRSyntaxError as error:
            self.line = start + error.line
            raise ValueError(error.detail) from error

    def statement(self, text: str, graph: Graph, root: torch.nn.Module) -> None:
        if text.startswith("symbols "):
            self.table.declare(text)
        elif text.startswith("kernel @"):
            self.kernel(text)
        elif text.startswith("graph @"):
            header = _HEADER.fullmatch(text)
            if header is None:
                raise ValueError("expected 'graph @name {'")
            self.graphs[header[1]] = self.body()
            self.attach(root, header[1], self.graphs[header[1]])
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
        elif scanner.eat(MISSING):
            if not self.without_values or not isinstance(value, torch.Tensor):
                raise ValueError(
                    f"constant @{name} is too large for the text; pass constants={{...}}"
                )
        elif scanner.eat("packed("):
            value = read_packed(scanner.balanced(")"), value)
        else:
            value = from_items(self.argument(scanner), value)
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
        meta: dict[str, Any] = {}
        if ":" in match[0]:
            meta["val"] = self.type(scanner)
        scanner.expect("=")
        word = scanner.match(_WORD)
        if word is None:
            raise ValueError("expected an op")
        node = self.call(word, name, scanner, graph)
        # fx would number a name that shadows a builtin; the text says what it was.
        node.name = name
        attributes = scanner.balanced("}") if scanner.eat("{") else ""
        node.meta |= meta | parse_attributes(attributes, self.joint)
        node.meta |= _origin(self.end(scanner))
        self.nodes[name] = node

    def call(self, word: str, name: str, scanner: _Scanner, graph: Graph) -> Node:
        if word == "batch":
            scanner.expect("@")
            body = scanner.match(_NAME) or ""
            args, _ = self.arguments(scanner, required=True)
            return graph.create_node("call_function", self.batch(body, *args), args, name=name)
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
        function = function_named(word)
        args, kwargs = self.arguments(scanner, required=True)
        return graph.create_node("call_function", function, args, kwargs, name=name)

    def batch(self, name: str, shared: list[Any], columns: list[Any]) -> BatchOp:
        if name not in self.graphs:
            raise ValueError(f"batch @{name} needs a graph of that name before it")
        body = self.graphs[name]
        given = [node for node in body.graph.nodes if node.op == "placeholder"][len(shared) :]
        if len(given) != len(columns):
            raise ValueError(f"graph @{name} takes {len(given)} columns, not {len(columns)}")
        return BatchOp(name, body, tuple(node.meta["val"].dim() > 0 for node in given))

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
                return build(items)
        number = scanner.match(_NUMBER)
        if number is not None:
            return _to_number(number)
        word = scanner.match(_WORD)
        if word is None:
            raise ValueError("expected a type")
        if word in _WORDS:
            return _WORDS[word]
        if word == "opaque":
            return OPAQUE
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
            return function_named(inside)
        if word == "opaque":
            raise ValueError(f"a value of type {inside} has no text and cannot be rebuilt")
        raise ValueError(f"unknown argument {word!r}")


def _origin(comment: str | None) -> dict[str, str]:
    """The metadata by which passes keep the user's line: like that of a traced node."""
    found = _ORIGIN.fullmatch(comment) if comment else None
    if found is not None:
        return {"stack_trace": trace_of(found[1], found[2])}
    return {"origin": comment} if comment else {}


def _to_number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
