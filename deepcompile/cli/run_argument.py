"""RUN on the command line: a run directory, a folder of runs (then its newest), or a run's name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from deepcompile.cli.terminal import note
from deepcompile.errors import DeepCompileError, RunDirError, nearest
from deepcompile.inspect.reader import Run, find_run, is_run, list_runs, read_run
from deepcompile.options import Options

DEFAULT_ROOT = ".deepcompile/runs"
"""Where runs are looked for, and where commands record, if nothing says otherwise."""
LATEST = "latest"

_F = TypeVar("_F", bound=Callable[..., Any])


def run_argument(command: _F) -> _F:
    """The optional argument RUN; the command gets it as `run`."""
    decorate = click.argument(
        "run", required=False, metavar="[RUN]", shell_complete=lambda c, p, text: run_names(text)
    )
    return decorate(command)


class ShowByDefault(click.Group):
    """A group in which `GROUP RUN` is `GROUP show RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            self._refuse_misspelt(ctx, args[0] if args else LATEST)
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def _refuse_misspelt(self, ctx: click.Context, word: str) -> None:
        """What is no run, but like the name of a command."""
        if ctx.resilient_parsing or word.startswith("-") or "/" in word:
            return
        if word == LATEST or _exists(Path(runs_root(word))):
            return
        close = nearest(word, self.commands)
        if close is not None:
            ctx.fail(f"no command and no run {word!r}; did you mean {close!r}?")


def runs_root(text: str | None) -> str:
    """The path that RUN means: as given, else of DEEPCOMPILE_RUN_DIR, else `DEFAULT_ROOT`.

    A name that is no path but that of a run below the root is that run.
    """
    root = Options.resolve().run_dir or DEFAULT_ROOT
    if not text or text == LATEST:
        return root
    if not _exists(Path(text)) and "/" not in text and is_run(Path(root, text)):
        return str(Path(root, text))
    return text


def read_root(text: str | None) -> str:
    """As `runs_root`, for what is only read.

    Raises:
        RunDirError: `text` is no path and no name of a run, but like one.
    """
    root = runs_root(text)
    if text and text != LATEST and "/" not in text and not _exists(Path(root)):
        error = unknown_run(text)
        if "did you mean" in str(error):
            raise error
    return root


def run_path(text: str | None) -> Path:
    """The one run directory that RUN means.

    Raises:
        RunDirError: there is none.
    """
    return find_run(read_root(text))


def chosen_run(text: str | None) -> Run:
    """The run that RUN means, read.

    Raises:
        RunDirError: there is none, or it cannot be read.
    """
    return read_run(read_root(text))


def is_run_text(text: str) -> bool:
    """Whether `text` means a run, where it could be something else too."""
    if text == LATEST:
        return True
    place = Path(runs_root(text))
    if not _exists(place) or not place.is_dir():
        return False
    if "/" in text or text.startswith("."):
        return True
    # A bare word may be a graph or a pass, and by chance a folder.
    try:
        return find_run(place) is not None
    except RunDirError:
        return False


def unknown_run(text: str) -> RunDirError:
    """The error for what is no run, with the nearest run's name."""
    root = runs_root(None)
    try:
        close = nearest(text, [path.name for path in list_runs(root)])
    except RunDirError:
        close = None
    hint = f"; did you mean {close!r}?" if close else f"; `deepcompile runs list` shows {root}"
    return RunDirError(f"no run {text!r}{hint}")


def note_what_is_missing(run: Run) -> None:
    """Say on stderr what could not be read of `run`, after all that is shown has been read."""
    for text in run.notes:
        note(f"note: {text}")


# -- shell completion: quick, silent, without torch ------------------------------------------------


def run_names(text: str) -> list[CompletionItem]:
    """Names of runs that begin with `text`, and folders."""
    found = []
    with contextlib.suppress(DeepCompileError, OSError):
        found = [path.name for path in list_runs(runs_root(None)) if path.name.startswith(text)]
    return [CompletionItem(name) for name in found] + [CompletionItem(text, type="dir")]


def graph_names(run: str | None, text: str) -> list[CompletionItem]:
    """Names of graphs of a run that begin with `text`."""
    try:
        names = [graph.name for graph in chosen_run(run).graphs]
    except (DeepCompileError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(text)]


def pass_names(run: str | None, text: str) -> list[CompletionItem]:
    """Names of passes of a run that begin with `text`."""
    try:
        states = [state.name for graph in chosen_run(run).graphs for state in graph.states]
    except (DeepCompileError, OSError):
        return []
    return [CompletionItem(name) for name in dict.fromkeys(states) if name.startswith(text)]


def kernel_names(run: str | None, text: str) -> list[CompletionItem]:
    """Names of kernels of a run that begin with `text`."""
    try:
        names = [kernel.name for kernel in chosen_run(run).kernels]
    except (DeepCompileError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(text)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
