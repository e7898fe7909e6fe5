"""What a command says beside its result: progress and notes on stderr, colours on a terminal."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import click

from deepcompile.inspect.safe_files import visible

Colour = Literal["auto", "always", "never"]
Advance = Callable[..., None]
"""Called as `advance(text="", steps=1)`."""


@dataclass
class Settings:
    """The global options of one call of the command."""

    colour: Colour = "auto"
    verbosity: int = 0
    """-1 with `-q`: no notes and no progress; 1 with `-v`."""


settings = Settings()


def is_coloured(stream: object | None = None) -> bool:
    """Whether text for a stream (default: stdout) gets colours."""
    if settings.colour != "auto":
        return settings.colour == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    found = sys.stdout if stream is None else stream
    return bool(getattr(found, "isatty", lambda: False)())


def styled(text: str, **style: object) -> str:
    """`text` in a colour of `click.style`, where colours are wanted."""
    return click.style(text, **style) if is_coloured() else text  # type: ignore[arg-type]


def note(text: str, level: int = 0) -> None:
    """A line on stderr; `level` 1 is for `-v` only."""
    if settings.verbosity >= level:
        click.echo(visible(text), err=True)


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python from looking for cycles: large graphs are many objects and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Advance]:
    """A bar on stderr while the body runs, which calls what it gets for each step.

    Where stderr is no terminal, a line at the end of long work only. `total` may be unknown.
    """
    start, done = time.monotonic(), 0
    if settings.verbosity < 0:
        yield lambda text="", steps=1: None
        return
    if not sys.stderr.isatty():

        def count(text: str = "", steps: int = 1) -> None:
            nonlocal done
            done += steps
            note(f"{label}: {done}{f'/{total}' if total else ''} {text}".rstrip(), 1)

        yield count
        seconds = time.monotonic() - start
        note(f"{label}: {done} in {seconds:.1f} s", 0 if seconds > 10 else 1)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    console = Console(stderr=True, no_color=not is_coloured(sys.stderr))
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[text]}"),
        console=console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(label, total=total, text="")

        def advance(text: str = "", steps: int = 1) -> None:
            bar.update(task, advance=steps, text=text)

        yield advance
