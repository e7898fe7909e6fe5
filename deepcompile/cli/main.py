"""The top of the command line: finds the command, and turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click
from click.shell_completion import CompletionItem, shell_complete

from deepcompile import __version__
from deepcompile.cli.exit import Exit
from deepcompile.cli.help_format import HelpContext, adapt_help
from deepcompile.cli.output import json_option, print_json
from deepcompile.cli.terminal import Colour, settings
from deepcompile.errors import (
    CacheError,
    CalibrationError,
    CompileError,
    CompilerMissing,
    DeepCompileError,
    nearest,
)
from deepcompile.inspect.safe_files import visible

_COMMANDS = {
    "passes": ("deepcompile.cli.passes:passes", "List and describe passes and the pipeline."),
    "run": ("deepcompile.cli.run:run_model", "Run a model in eager and compiled, and compare."),
    "train": ("deepcompile.cli.train:train", "Train a demo in eager and compiled, and compare."),
    "explain": ("deepcompile.cli.explain:explain", "Tell what became of a model, and why."),
    "dump": ("deepcompile.cli.dump:dump", "Compile a model and keep every state of its graphs."),
    "opt": ("deepcompile.cli.opt:opt", "Run passes on the text of a graph."),
    "options": ("deepcompile.cli.options:options", "List the options of a compile."),
    "compile": ("deepcompile.cli.compile:compile_model", "Make kernels for a GPU, without one."),
    "show": ("deepcompile.cli.show:show", "A graph after a pass, or what is around a node."),
    "diff": ("deepcompile.cli.diff:diff", "What passes changed; what differs between two runs."),
    "kernels": ("deepcompile.cli.kernels:kernels", "Generated kernels: list them, show one."),
    "runs": ("deepcompile.cli.runs:runs", "Read recorded runs."),
    "memory": ("deepcompile.cli.memory:memory", "Read memory plans and compare them."),
    "sharding": ("deepcompile.cli.sharding:sharding", "Read placements on a mesh, or plan them."),
    "trace": ("deepcompile.cli.trace:trace", "Write compile time for Perfetto."),
    "report": ("deepcompile.cli.report:report", "Write a run as one HTML file."),
    "bisect": ("deepcompile.cli.bisect:bisect", "Find the pass or kernel behind a failure."),
    "probe": ("deepcompile.cli.probe:probe", "Compare MODEL with eager once, as bisect does."),
    "minify": ("deepcompile.cli.minify:minify", "Make a small script of a failure."),
    "cache": ("deepcompile.cli.cache:cache", "Look after the cache of built kernels."),
    "doctor": ("deepcompile.cli.doctor:doctor", "Check this installation."),
    "completion": ("deepcompile.cli.completion:completion", "Complete words in your shell."),
    "version": ("deepcompile.cli.main:version", "Print the version."),
}
COMPLETE = "_DEEPCOMPILE_COMPLETE"
"""The variable with which shells ask for completions."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_NO_STATUS = (CacheError, CalibrationError, CompilerMissing)


class LazyGroup(click.Group):
    """Imports a command's module when the command is called."""

    context_class = HelpContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        adapt_help(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS:
            close = nearest(args[0], _COMMANDS)
            hint = f"; did you mean {close!r}?" if close else ""
            ctx.fail(f"unknown command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: deepcompile show; deepcompile COMMAND --help",
)
@click.version_option(__version__, message="%(version)s")
@click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto",
    help="Colours: on a terminal, always or never.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.pass_context
def cli(ctx: click.Context, color: Colour, quiet: bool, verbose: bool) -> None:
    """Look into the deepcompile graph compiler and what it compiled."""
    settings.colour, settings.verbosity = color, verbose - quiet
    ctx.color = {"auto": None, "always": True, "never": False}[color]


@click.command(epilog="Example: deepcompile version --json")
@json_option
def version(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        print_json("version", version=__version__)
    else:
        click.echo(__version__)


def run(arguments: Sequence[str] | None = None) -> Exit:
    """Run the command and return its exit status; messages go to stderr."""
    if sys.stdout is None:  # closed, as by `>&-`: nobody wants the result
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    _take_any_text()
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        with cli.make_context("deepcompile", words) as ctx:
            result = cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return Exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except BrokenPipeError:
        # The reader (a pager, head) went away: nothing is wrong.
        _drop_stdout()
        return Exit.OK
    except CompileError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        return Exit.MODEL_FAILED
    except DeepCompileError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        return Exit.NO if isinstance(error, _NO_STATUS) else Exit.USAGE
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            return _bug()
        click.echo(f"error: the result cannot be written: {error.strerror}", err=True)
        _drop_stdout()
        return Exit.USAGE
    except Exception:
        return _bug()
    return result if isinstance(result, Exit) else Exit.OK


def _bug() -> Exit:
    click.echo(visible(traceback.format_exc()), err=True, nl=False)
    click.echo("This is a bug in deepcompile; please report the text above.", err=True)
    return Exit.BUG


def _drop_stdout() -> None:
    """Keep exit from flushing into what takes no more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _take_any_text() -> None:
    """Let streams of any encoding take any text: what they cannot hold is written as `\\xe4`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> NoReturn:
    """The console script."""
    complete = os.environ.get(COMPLETE)
    if complete:
        sys.exit(shell_complete(cli, {}, "deepcompile", COMPLETE, complete))
    sys.exit(int(run()))
