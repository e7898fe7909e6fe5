"""`deepcompile run -- CMD...`: a program as it is, with every `torch.compile` in it sent to us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deepcompile.child.environment import child_environment
from deepcompile.cli.exit import Exit
from deepcompile.cli.output import print_json, table
from deepcompile.cli.runs import run_row, run_summary
from deepcompile.cli.terminal import note
from deepcompile.cli.text import say
from deepcompile.inspect.reader import list_runs, read_run

_COMMAND = "deepcompile.command"


class RunCommand(click.Command):
    """Takes `-- CMD...` in place of MODEL."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            args, command = [*args[:place], "--", "CMD"], args[place + 1 :]
            if not command:
                ctx.fail("a command is missing behind --")
            ctx.meta[_COMMAND] = command
        return super().parse_args(ctx, args)


def command_of(ctx: click.Context) -> list[str] | None:
    """What stands behind `--`; None where nothing does."""
    found: list[str] | None = ctx.meta.get(_COMMAND)
    return found


def run_script(
    command: Sequence[str], root: str, options: Mapping[str, Any], as_json: bool
) -> Exit:
    """Run a command, recorded below `root`, and say which runs it left there.

    Its output goes where it would go; with `as_json` all of it to stderr.

    Raises:
        click.UsageError: the command cannot be started.
    """
    place = Path(root)
    known = set(list_runs(place)) if place.is_dir() else set()
    texts = {
        name: ",".join(value) if isinstance(value, (list, tuple)) else str(value)
        for name, value in options.items()
    }
    environment = child_environment({**texts, "run_dir": os.path.abspath(root)})
    try:
        done = subprocess.run(
            command, env=environment, check=False, stdout=sys.stderr if as_json else None
        )
    except OSError as error:
        raise click.UsageError(f"{command[0]!r} cannot be started: {error.strerror}") from None
    new = [path for path in list_runs(place) if path not in known] if place.is_dir() else []
    runs = [read_run(path) for path in new]
    if as_json:
        summaries = [run_summary(run) for run in runs]
        print_json("run", arguments=list(command), status=done.returncode, runs=summaries)
    elif runs:
        header = ("RUN", "STATUS", "GRAPHS", "KERNELS", "FALLBACKS")
        say(table(header, [run_row(run) for run in runs]))
        note(f"recorded in {root}; deepcompile report {runs[-1].path} shows it")
    else:
        note("nothing was compiled: no torch.compile was called")
    if done.returncode:
        note(f"the command ended with status {done.returncode}")
    return Exit.MODEL_FAILED if done.returncode else Exit.OK
