"""`deepcompile report`: a run as one HTML file. Reads files only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from deepcompile.cli.output import json_option, print_json
from deepcompile.cli.run_argument import chosen_run, run_argument
from deepcompile.cli.terminal import note

_EPILOG = """
\b
Examples:
  deepcompile report                       the latest run, as report.html
  deepcompile report runs/20260101T120000-train-812 -o train.html --open
  deepcompile report --node mm_3 --max-nodes 80
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.option(
    "-o", "--output", default="report.html", show_default=True, metavar="FILE",
    help="Where to write the page; it takes the place of what is there.",
)  # fmt: skip
@click.option(
    "--max-nodes", default=300, show_default=True, type=click.IntRange(min=1),
    help="Of the neighbourhood that is drawn of each graph.",
)  # fmt: skip
@click.option("--node", help="The node in its middle; else the one that takes longest.")
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
@json_option
def report(
    run: str | None, output: str, max_nodes: int, node: str | None, opens: bool, as_json: bool
) -> None:
    """Write RUN as one HTML file: passes, graphs, kernels, memory, sharding and events.

    The file needs no network and runs no script but its own.
    """
    from deepcompile.inspect.report.page import make_report

    found = chosen_run(run)
    made = make_report(found, max_nodes, node)
    path = Path(output)
    _write(path, made.html)
    for problem in made.problems:
        note(f"note: {problem}")
    if as_json:
        print_json(
            "report", file=str(path), run=str(found.path), bytes=path.stat().st_size,
            graphs=made.graphs, nodes=made.nodes, kernels=made.kernels, events=made.events,
            problems=list(made.problems),
        )  # fmt: skip
    else:
        click.echo(str(path))
    if opens:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            note(f"no browser was found: open {path} in one")


def _write(path: Path, text: str) -> None:
    """Whole or not at all.

    Raises:
        click.UsageError: it cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}") from None
