"""`deepcompile trace`: the compile time of recorded runs, for Perfetto. Reads files only."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import click

from deepcompile.cli.output import json_option, json_text, print_json
from deepcompile.cli.run_argument import chosen_run
from deepcompile.cli.terminal import note
from deepcompile.inspect.compile_trace import chrome_trace, spans


@click.command(
    epilog="Example: deepcompile trace runs -o trace.json, then open it at ui.perfetto.dev"
)
@click.argument("run", nargs=-1, metavar="[RUN]...")
@click.option(
    "-o", "--output", default="trace.json", show_default=True,
    help="The file to write; - is standard output.",
)  # fmt: skip
@json_option
def trace(run: tuple[str, ...], output: str, as_json: bool) -> None:
    """Write the compile time of runs as a Chrome trace: captures, graphs, passes, builds.

    RUN is a run directory, or a folder of runs: then its newest. Several, for example those of all
    ranks of a job, share one timeline. The steps of a program are the subject of torch.profiler,
    whose traces name our graphs and can be opened beside this one.
    """
    found = [chosen_run(path) for path in run or (None,)]
    document = chrome_trace(found)
    seconds: defaultdict[str, float] = defaultdict(float)
    for recorded in found:
        for span in spans(recorded):
            seconds[span.category] += span.seconds
    text = json_text(document)
    if output == "-":
        sys.stdout.write(text + "\n")
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"cannot write {output!r}: {error}", param_hint="-o") from None
    count = len(document["traceEvents"])
    if as_json:
        print_json("trace", path=output, events=count, seconds=dict(seconds))
        return
    click.echo(output)
    note(f"{count} events; open the file at https://ui.perfetto.dev or chrome://tracing")
