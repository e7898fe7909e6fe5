"""Results on stdout: aligned text for people, one JSON document for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.text import say
from deepcompile.inspect.safe_files import visible_line

SCHEMA = 1
_F = TypeVar("_F", bound=Callable[..., Any])


def json_option(command: _F) -> _F:
    """`--json`: print one JSON document instead of text."""
    decorate = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    return decorate(command)


def print_json(command: str, **fields: Any) -> None:
    """The document of `command`, with its schema."""
    click.echo(json_text({"schema": SCHEMA, "command": command} | fields, indent=2))


def not_reproduced(command: str, text: str, as_json: bool) -> Exit:
    """Says why `command` found no failure to work on."""
    if as_json:
        print_json(command, reproduced=False, reason=text)
    else:
        say(f"nothing to {command}: {text}")
    return Exit.NO


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: what is no finite number becomes null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, columns aligned and never cut; each row is one line."""
    lines = [list(header), *([visible_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
