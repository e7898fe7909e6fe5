"""Pipelines as text: `canonicalise,fuse-rows{max-ops=64 verbose=true}` <-> pass instances.

A whole compile has two phases: `joint(...)` runs on the graph of forward and backward together
(and first on an inference graph), `graph(...)` on each graph that is compiled. Text without phases
is the `graph` phase, and a phase that is not mentioned keeps its default.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deepcompile.errors import OptionError, PipelineError, unknown_name
from deepcompile.options import Options
from deepcompile.pipeline.protocol import Pass
from deepcompile.pipeline.registry import (
    PassOption,
    Registry,
    default_pipeline_text,
    default_registry,
    pass_options,
)

PHASES = ("joint", "graph")
_TOKEN = re.compile(r'\s*(?:([A-Za-z0-9_.:+/-]+)|("(?:[^"\\]|\\.)*")|([{}()\[\],=]))')
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/+-]*")
_RESERVED = {"true", "false", "none"}


def parse_passes(text: str, registry: Registry | None = None) -> tuple[Pass, ...]:
    """The passes of `a,b{option=value}`; `PipelineError` says what is unknown or misplaced."""
    reader = _Reader(text)
    passes = reader.passes(registry or default_registry())
    reader.end()
    return passes


def is_phased(text: str) -> bool:
    """Whether pipeline text names phases, `joint(...)` or `graph(...)`."""
    return _Reader(text).at_phase()


def print_passes(passes: Sequence[Pass]) -> str:
    """The text that parses back to equal passes; options at their default are left out."""
    return ",".join(map(print_pass, passes))


def print_pass(pass_: Pass) -> str:
    """One pass as text, e.g. `fuse-rows{max-ops=64}`."""
    options = [
        f"{option.name}={_print_value(getattr(pass_, option.field))}"
        for option in pass_options(type(pass_))
        if getattr(pass_, option.field) != option.default
    ]
    return pass_.name + ("{" + " ".join(options) + "}" if options else "")


@dataclass(frozen=True)
class Pipeline:
    """The passes of one compile, by phase."""

    joint: tuple[Pass, ...]
    graph: tuple[Pass, ...]

    def __str__(self) -> str:
        return f"joint({print_passes(self.joint)}),graph({print_passes(self.graph)})"

    def upto(self, name: str) -> Pipeline:
        """The pipeline up to the last pass called `name`; `joint:NAME` is the one of that phase.

        Raises:
            PipelineError: there is none.
        """
        phase, _, wanted = name.rpartition(":")
        places = [
            (where, position)
            for where, passes in (("joint", self.joint), ("graph", self.graph))
            for position, pass_ in enumerate(passes)
            if pass_.name == wanted and phase in ("", where)
        ]
        if not places:
            names = dict.fromkeys(pass_.name for pass_ in (*self.joint, *self.graph))
            raise PipelineError(unknown_name("pass of this pipeline:", name, names))
        where, position = places[-1]
        if where == "joint":
            return Pipeline(self.joint[: position + 1], ())
        return Pipeline(self.joint, self.graph[: position + 1])

    @classmethod
    def parse(cls, text: str | None = None, registry: Registry | None = None) -> Pipeline:
        """The pipeline that `text` describes; the default one for None."""
        registry = registry or default_registry()
        phases = _parse_phases(default_pipeline_text() if text is None else text, registry)
        if len(phases) < len(PHASES):
            phases = _parse_phases(default_pipeline_text(), registry) | phases
        for pass_ in phases["graph"]:
            if pass_.phase != "graph":
                raise PipelineError(
                    f"pass {pass_.name!r} works on the joint graph; write joint({pass_.name},...)"
                )
        return cls(phases["joint"], phases["graph"])

    @classmethod
    def of(cls, options: Options, registry: Registry | None = None) -> Pipeline:
        """The pipeline that `options` ask for, after checking the pass names in all of them."""
        registry = registry or default_registry()
        for entry in options.disable:
            _check_named_pass("disable", entry.partition("/")[0], "/" not in entry, registry)
        if options.rewrite_limit is not None:
            _check_named_pass("rewrite_limit", options.rewrite_limit[0], False, registry)
        return cls.parse(options.passes, registry)


def _check_named_pass(option: str, name: str, whole: bool, registry: Registry) -> None:
    if name not in registry.names():
        raise OptionError(f"option {option}: {unknown_name('pass', name, registry.names())}")
    if whole and not registry.get(name).skippable:
        raise OptionError(f"option {option}: the pass {name!r} is required and cannot be left out")


def _parse_phases(text: str, registry: Registry) -> dict[str, tuple[Pass, ...]]:
    reader = _Reader(text)
    if not reader.at_phase():
        passes = reader.passes(registry)
        reader.end()
        return {"graph": passes}
    phases: dict[str, tuple[Pass, ...]] = {}
    while True:
        if not reader.at_phase():
            reader.fail(f"expected one of {', '.join(f'{p}(...)' for p in PHASES)}")
        phase = reader.take()
        if phase in phases:
            reader.fail(f"the phase {phase!r} appears twice")
        reader.expect("(")
        phases[phase] = () if reader.peek() == ")" else reader.passes(registry)
        reader.expect(")")
        if reader.peek() != ",":
            break
        reader.expect(",")
    reader.end()
    return phases


class _Reader:
    """Tokens of a pipeline string, with the position for error messages."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, int]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                column = position + len(text[position:]) - len(text[position:].lstrip())
                raise PipelineError(
                    f"unexpected {text[column]!r} at column {column + 1} of {text!r}"
                )
            self.tokens.append((match[match.lastindex or 0], match.start(match.lastindex or 0)))
            position = match.end()
        self.next = 0

    def peek(self, ahead: int = 0) -> str:
        """A coming token, or "" at the end."""
        at = self.next + ahead
        return self.tokens[at][0] if at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.next += 1
        return token

    def fail(self, message: str) -> typing.NoReturn:
        at = self.tokens[self.next][1] if self.next < len(self.tokens) else len(self.text)
        raise PipelineError(f"{message}, at column {at + 1} of {self.text!r}")

    def expect(self, token: str) -> None:
        if self.peek() != token:
            self.fail(f"expected {token!r}")
        self.next += 1

    def end(self) -> None:
        if self.peek():
            self.fail(f"unexpected {self.peek()!r}")

    def at_phase(self) -> bool:
        return self.peek() in PHASES and self.peek(1) == "("

    def passes(self, registry: Registry) -> tuple[Pass, ...]:
        found = [self.one_pass(registry)]
        while self.peek() == ",":
            self.take()
            found.append(self.one_pass(registry))
        return tuple(found)

    def one_pass(self, registry: Registry) -> Pass:
        if not _BARE.fullmatch(self.peek()):
            self.fail("expected the name of a pass")
        info = registry.get(self.take())
        values: dict[str, Any] = {}
        if self.peek() != "{":
            return typing.cast(Pass, info.cls())
        self.take()
        options = {option.name: option for option in info.options}
        while self.peek() != "}":
            name = self.peek()
            if name not in options:
                self.fail(unknown_name(f"option of pass {info.name!r}:", name, options))
            self.take()
            self.expect("=")
            values[options[name].field] = self.value(info.name, options[name])
        self.take()
        return typing.cast(Pass, info.cls(**values))

    def value(self, pass_name: str, option: PassOption) -> Any:
        start = self.next
        if self.peek() == "[":
            self.take()
            items = []
            while self.peek() != "]":
                items.append(self.take())
                if self.peek() == ",":
                    self.take()
                elif self.peek() != "]":
                    self.fail("expected ',' or ']'")
            self.take()
            raw: str | list[str] = items
        else:
            if not self.peek() or self.peek() in "{}()[],=":
                self.fail("expected a value")
            raw = self.take()
        try:
            return _convert(raw, option.type)
        except ValueError as error:
            self.next = start
            self.fail(f"option {option.name!r} of pass {pass_name!r}: {error}")


def _convert(raw: str | list[str], kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if raw == "none" and type(None) in arguments:
            return None
        return _convert(raw, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        items = raw if isinstance(raw, list) else [raw]
        return tuple(_convert(item, arguments[0]) for item in items)
    if isinstance(raw, list):
        raise ValueError("it takes one value, not a list")
    if origin is Literal:
        if raw not in arguments:
            raise ValueError(unknown_name("value", raw, map(str, arguments)))
        return raw
    if kind is str:
        return json.loads(raw) if raw.startswith('"') else raw
    if kind is bool:
        if raw not in ("true", "false"):
            raise ValueError(f"expected true or false, not {raw}")
        return raw == "true"
    if kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            raise ValueError(f"expected a number, not {raw}") from None
    raise ValueError(f"values of type {kind} cannot be written in a pipeline")


def _print_value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ",".join(map(_print_value, value)) + "]"
    if isinstance(value, str) and (value in _RESERVED or not _BARE.fullmatch(value)):
        return json.dumps(value)
    return str(value)
