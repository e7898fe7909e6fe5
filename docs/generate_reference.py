"""Writes the reference as Markdown, from the tables and docstrings that the program itself uses.

python docs/generate_reference.py FOLDER
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import deepcompile
from deepcompile import errors
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import cli
from deepcompile.options import MODES, option_table
from deepcompile.passes import PASSES
from deepcompile.pipeline import rundir
from deepcompile.pipeline.registry import PassInfo, default_pipeline_text, default_registry

_CODE_SPAN = re.compile(r"(`+[^`]*`+)")


def pages() -> Mapping[str, str]:
    """The text of each page by its file name, without those that only list others."""
    return {
        "commands.md": commands(),
        "options.md": options(),
        "passes.md": passes(),
        "api.md": api(),
        "errors.md": error_classes(),
        "exit-codes.md": exit_codes(),
        "run-directory.md": run_directory(),
    }


def write(folder: Path) -> None:
    """Write all pages; those that are as they were keep their time, so builds stay incremental."""
    folder.mkdir(exist_ok=True)
    found = dict(pages())
    listed = "\n".join(name.removesuffix(".md") for name in found)
    found["index.md"] = (
        "# Reference\n\nGenerated from the code of this version.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    )
    for stale in {p.name for p in folder.glob("*.md")} - found.keys():
        (folder / stale).unlink()
    for name, text in found.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# -- pages ----------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its usage, help, arguments and options."""
    parts = [
        "# Commands\n",
        "`deepcompile COMMAND`, or `python -m deepcompile COMMAND`. Results go to standard output,",
        "all else to standard error. [Exit statuses](exit-codes.md) are the same everywhere.",
    ]
    root = click.Context(cli, info_name="deepcompile")
    parts += ["\n## Options of every command\n", *_parameters(cli, root)]
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        assert command is not None
        parts += _command(command, click.Context(command, root, name), level=2)
    return "\n".join(parts) + "\n"


def options() -> str:
    """Every option of a compile, with variable and default; and what modes set."""
    modes = [
        (f"`{name}`", ", ".join(f"`{key}={value}`" for key, value in preset.items()) or "nothing")
        for name, preset in MODES.items()
    ]
    parts = [
        "# Options\n",
        '`torch.compile(model, backend="deepep", options={...})`. The environment variable of an',
        "option holds for all compiles of a process; `options` in code wins over it, and it wins",
        "over what `mode=` sets. A wrong name or value is an `OptionError`.",
    ]
    for row in option_table():
        default = "" if row.default in (None, ()) else f", by default `{row.default}`"
        parts += [f"\n## {row.name}\n", prose(row.doc), ""]
        parts.append(f"Takes `{row.kind}`{default}. Variable: `{row.env}`.")
    parts += ["\n## Modes\n", *table(("mode", "sets"), modes), ""]
    return "\n".join(parts)


def passes() -> str:
    """The pipeline and every pass that comes with the package."""
    parts = ["# Passes\n", "The pipeline of a compile that names none:\n"]
    parts += [*fenced(default_pipeline_text()), ""]
    parts.append("Passes of installed packages join these; see [](../pass-authors.md).")
    for name in PASSES:
        parts += _pass(default_registry().get(name))
    return "\n".join(parts) + "\n"


def api() -> str:
    """What `import deepcompile` gives."""
    parts = ["# Python\n", "Names of `deepcompile`, imported when first used."]
    for name in deepcompile.__all__:
        value = getattr(deepcompile, name)
        if name.startswith("__") or (isinstance(value, type) and issubclass(value, Exception)):
            continue
        parts.append(f"\n## deepcompile.{name}\n")
        if inspect.isfunction(value):
            parts += [*fenced(f"{name}{inspect.signature(value)}", "python"), ""]
        parts += _docstring(inspect.getdoc(value) or "")
    return "\n".join(parts) + "\n"


def error_classes() -> str:
    """Every class of error, in the order of the module."""
    parts = [
        "# Errors\n",
        "One class for each failure that a user can meet, all of them in `deepcompile.errors` and",
        "derived from `DeepCompileError`.",
    ]
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.DeepCompileError):
            parts += [f"\n## {name}\n", *_docstring(inspect.getdoc(value) or "")]
    return "\n".join(parts) + "\n"


def exit_codes() -> str:
    """What exit statuses mean."""
    rows = [(f"`{int(code)}`", f"`{code.name}`", prose(code.meaning)) for code in Exit]
    return "\n".join(["# Exit statuses\n", *table(("status", "name", "meaning"), rows), ""])


def run_directory() -> str:
    """What a recorded run holds."""
    text = inspect.getdoc(rundir) or ""
    parts = [
        "# Run directory\n",
        f'`options={{"run_dir": ROOT}}` or `DEEPCOMPILE_RUN_DIR=ROOT` records a run. '
        f"This is schema {rundir.SCHEMA}.\n",
        *_docstring(text.partition("\n")[2].lstrip("\n")),
    ]
    return "\n".join(parts) + "\n"


# -- parts ----------------------------------------------------------------------------------------


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    yield f"\n{'#' * level} {context.command_path}\n"
    yield from fenced(command.get_usage(context).removeprefix("Usage: "))
    yield ""
    for text in filter(None, (command.help, command.epilog)):
        yield from _help(inspect.cleandoc(text))
    yield from _parameters(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            if not found.hidden:
                yield from _command(found, click.Context(found, context, name), level + 1)


def _help(text: str) -> Iterator[str]:
    """Paragraphs of a help text: those that click leaves as they are, and examples, are code."""
    for paragraph in text.split("\n\n"):
        head, colon, example = paragraph.partition(":")
        if paragraph.startswith("\b\n"):
            yield from fenced(inspect.cleandoc(paragraph.removeprefix("\b\n")))
        elif head in ("Example", "Examples") and colon and example.strip():
            yield from [f"{head}:", "", *fenced(inspect.cleandoc(example).strip(), "sh")]
        else:
            yield from _docstring(paragraph)
        yield ""


def _parameters(command: click.Command, context: click.Context) -> list[str]:
    shown = [p for p in command.get_params(context) if command is cli or p.name != "help"]
    records = [p.get_help_record(context) for p in shown]
    rows = [(f"`{names}`", prose(meaning)) for names, meaning in filter(None, records)]
    return table(("option", "meaning"), rows)


def _pass(info: PassInfo) -> Iterator[str]:
    yield f"\n## {info.name}\n"
    yield from _docstring(info.doc)
    yield ""
    phase = "in the joint phase" if info.phase == "joint" else "in the phase of single graphs"
    skippable = "can be left out" if info.skippable else "always runs"
    needs = ", ".join(f"`{p}`" for p in sorted(info.requires)) or "nothing"
    makes = ", ".join(f"`{p}`" for p in sorted(info.establishes)) or "nothing"
    yield f"Belongs {phase}; {skippable}; requires {needs}; establishes {makes}."
    if info.options:
        rows = [(f"`{o.name}`", f"`{o.kind}`", f"`{o.default}`") for o in info.options]
        yield from ["", *table(("option", "type", "default"), rows)]


def _docstring(text: str) -> Iterator[str]:
    """A docstring as Markdown: what is indented under a line is code, and so are tables."""
    block: list[str] = []
    for line in [*text.splitlines(), "."]:
        if line.startswith(("    ", "\t")) or (block and not line.strip()):
            block.append(line)
            continue
        if block:
            yield from ["", *fenced(inspect.cleandoc("\n".join(["", *block]))), ""]
            block = []
        if line == ".":
            return
        yield prose(line)


def prose(text: str) -> str:
    """`text` with all markup escaped but code between backticks."""
    spans = _CODE_SPAN.split(text)
    return "".join(
        span if number % 2 else re.sub(r"([\\*<\[\]|#$])", r"\\\1", span)
        for number, span in enumerate(spans)
    )


def fenced(text: str, language: str = "text") -> list[str]:
    """A block of code."""
    return [f"````{language}", text.strip("\n"), "````"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, or nothing without rows; bars within cells are escaped."""
    if not rows:
        return []
    cells = [[cell.replace("\\|", "|").replace("|", "\\|") for cell in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def main(arguments: Sequence[str]) -> Any:
    """Write into the folder that is named."""
    if len(arguments) != 1:
        raise SystemExit("usage: python docs/generate_reference.py FOLDER")
    write(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
