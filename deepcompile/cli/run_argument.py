"""RUN on the command line: a run directory, or a folder of runs, of which the newest is meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from deepcompile.inspect.reader import Run, find_run, read_run
from deepcompile.options import Options

DEFAULT_ROOT = ".deepcompile/runs"
"""Where runs are looked for, and where commands record, if nothing says otherwise."""

_F = TypeVar("_F", bound=Callable[..., Any])


def run_argument(command: _F) -> _F:
    """The optional argument RUN; the command gets it as `run`."""
    decorate = click.argument("run", required=False, metavar="[RUN]")
    return decorate(command)


def runs_root(text: str | None) -> str:
    """The path that RUN means: as given, else of DEEPCOMPILE_RUN_DIR, else `DEFAULT_ROOT`."""
    return text or Options.resolve().run_dir or DEFAULT_ROOT


def run_path(text: str | None) -> Path:
    """The one run directory that RUN means.

    Raises:
        RunDirError: there is none.
    """
    return find_run(runs_root(text))


def chosen_run(text: str | None) -> Run:
    """The run that RUN means, read.

    Raises:
        RunDirError: there is none, or it cannot be read.
    """
    return read_run(runs_root(text))
