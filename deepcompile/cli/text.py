"""Text on stdout: made visible, with the colours of IR and of differences on a terminal."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from typing import Any

import click

from deepcompile.cli.terminal import is_coloured
from deepcompile.inspect.safe_files import visible

_WORDS = (
    "const def double else extern float for from if import in int long None return static struct "
    "template typename unsigned using void while"
)
_CODE = re.compile(
    r"((?://|#).*|/\*.*?\*/|^\s*;.*)|(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    rf"|\b({_WORDS.replace(' ', '|')})\b|(?<![\w.])(\d[\w.]*)"
)
_STYLES: tuple[dict[str, Any], ...] = (
    {"dim": True},
    {"fg": "green"},
    {"bold": True},
    {"fg": "cyan"},
)
_IR = re.compile(r"(%[\w.]+)|(  # .*)$|(?<== )([\w.]+(?: @[\w.]+)?)")


def say(lines: str | Iterable[str]) -> None:
    """Print lines, control characters made visible, in one write: large graphs are quick."""
    shown = [lines] if isinstance(lines, str) else list(lines)
    if shown:
        click.echo(visible("\n".join(shown)))


def say_ir(lines: Iterable[str]) -> None:
    """Print lines of IR: names, ops and origins in colours on a terminal."""
    if not is_coloured():
        say(lines)
        return
    click.echo("\n".join(coloured_ir(visible(line)) for line in lines), color=True)


def coloured_ir(line: str) -> str:
    """One line of IR with colours."""
    return _IR.sub(_coloured, line)


def _coloured(found: re.Match[str]) -> str:
    if found[1]:
        return click.style(found[1], fg="cyan")
    if found[2]:
        return click.style(found[2], dim=True)
    return click.style(found[3], bold=True)


def say_code(text: str) -> None:
    """Print source code: comments, strings, words and numbers in colours on a terminal."""
    if not is_coloured():
        say(text)
        return
    lines = (_CODE.sub(_coloured_code, line) for line in visible(text).split("\n"))
    click.echo("\n".join(lines), color=True)


def _coloured_code(found: re.Match[str]) -> str:
    styles: tuple[dict[str, Any], ...] = (
        {"dim": True},
        {"fg": "green"},
        {"bold": True},
        {"fg": "cyan"},
    )
    return click.style(found[0], **styles[(found.lastindex or 1) - 1])


def say_diff(lines: Iterable[str]) -> None:
    """Print lines of a difference: `+` green, `-` red, `@@` cyan on a terminal."""
    if not is_coloured():
        say(lines)
        return
    colours = {"+": "green", "-": "red", "@": "cyan", "~": "yellow"}
    shown = (visible(line) for line in lines)
    styled = (click.style(t, fg=colours[t[:1]]) if t[:1] in colours else t for t in shown)
    click.echo("\n".join(styled), color=True)


def columns() -> int | None:
    """The width of the terminal; None where stdout is none, and nothing is to be folded."""
    if not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns
