"""The graphs of a run as a page holds them: passes in order, the first state, edits to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.ir_text import IRGraph, parse_ir
from deepcompile.inspect.reader import GraphRecord, State
from deepcompile.inspect.report.edits import Edit, edits
from deepcompile.inspect.report.text import clean, clean_all, number

MOST_LINES = 200_000
"""Lines of a state that are shown."""


class GraphPages:
    """One graph: what its list of passes says, and its states as lines.

    Attributes:
        passes: one entry a pass, with `text`: the number of its state, or -1.
        first, later: lines of the first state that has any, and edits to each later one.
        input, output: the first and the last state, parsed.
        modules: as recorded: by path, names of nodes with spaces between.
    """

    def __init__(self, record: GraphRecord) -> None:
        self.name = record.name
        self.passes: list[dict[str, Any]] = []
        self.first: list[str] = []
        self.later: list[list[Edit]] = []
        self.problems: list[str] = []
        self.modules: Mapping[str, Any] = {}
        self._count = 0
        lines: list[str] = []
        texts: list[str] = []
        for state in record.states:
            text = self._text(state)
            if text is not None:
                texts = [*texts[:1], text]
                shown = [clean(line) for line in text.split("\n")[:MOST_LINES]]
                if shown and not shown[-1]:
                    shown.pop()
                if self._count:
                    self.later.append(edits(lines, shown))
                else:
                    self.first = shown
                    self.modules = _mapping(state.meta.get("modules"))
                lines = shown
                self._count += 1
            self.passes.append(_pass(state, self._count - 1 if text is not None else -1))
        self.input: IRGraph = parse_ir(texts[0] if texts else "")
        self.output: IRGraph = parse_ir(texts[-1]) if len(texts) > 1 else self.input

    def _text(self, state: State) -> str | None:
        try:
            return state.text
        except RunDirError as error:
            self.problems.append(str(error))
            return None

    @property
    def kind(self) -> str:
        """Of the graph, as its passes were told."""
        return next((str(entry["kind"]) for entry in self.passes if entry["kind"]), "")

    def summary(self) -> dict[str, Any]:
        """What the list of passes needs."""
        return {
            "name": clean(self.name),
            "kind": clean(self.kind),
            "nodes": len(self.input.nodes),
            "passes": self.passes,
        }

    def content(self) -> dict[str, Any]:
        """The lines of all states."""
        return {"first": self.first, "later": self.later}


def _pass(state: State, text: int) -> dict[str, Any]:
    meta = state.meta
    delta = meta.get("op_delta")
    return {
        "index": state.index,
        "name": clean(state.name, 200),
        "status": clean(meta.get("status", ""), 60),
        "kind": clean(meta.get("kind", ""), 60),
        "ms": round(number(meta.get("ms")), 3),
        "text": text,
        "reason": clean(meta.get("reason", "")),
        "delta": {clean(op): int(number(n)) for op, n in _mapping(delta).items()},
        "facts": {
            name: clean_all(meta[name])
            for name in ("pass", "number", "stats", "rewrites", "properties")
            if meta.get(name)
        },
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
