"""`deepcompile dump`: compiles a model and keeps every state of its graphs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.model_options import ModelChoice, model_options, out_option
from deepcompile.cli.output import json_option, print_json
from deepcompile.cli.recorded import recorded
from deepcompile.cli.run_argument import runs_root
from deepcompile.inspect.reader import Run, read_run
from deepcompile.options import Options


class _Pattern(click.ParamType):  # type: ignore[type-arg]
    name = "regex"

    def convert(self, value: Any, param: Any, ctx: Any) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)


@click.command(
    epilog="Example: deepcompile dump demo:transformer --graphs backward --upto canonicalise"
)
@model_options
@click.option("--graphs", type=_Pattern(), help="Only graphs in whose names it is found.")
@click.option("--passes", "names", type=_Pattern(), help="Text only of passes that it finds.")
@click.option("--upto", metavar="PASS", help="Stop after the last PASS; joint:PASS is the first.")
@click.option("--all", "everything", is_flag=True, help="Text of unchanged states too.")
@out_option
@json_option
def dump(
    choice: ModelChoice,
    graphs: re.Pattern[str] | None,
    names: re.Pattern[str] | None,
    upto: str | None,
    everything: bool,
    out: Path | None,
    as_json: bool,
) -> Exit:
    """Compile MODEL, run nothing, and print the index of the run directory.

    MODEL is file.py:factory, pkg.mod:factory or demo:NAME. It is traced on fake CPU tensors,
    forward and backward: no kernel is built. `deepcompile show` and `deepcompile opt` read what
    was kept. Exits with 3 when the model cannot be traced.
    """
    if choice.device not in (None, "cpu"):
        raise click.BadParameter(
            "graphs are traced on the CPU; `deepcompile compile` makes kernels for a GPU, and "
            "`deepcompile run --dump all` runs on one",
            param_hint="--device",
        )
    if upto is not None:
        choice.pipeline().upto(upto)
    function, inputs = choice.load()
    from deepcompile.dumping import Request, dump_model

    root = runs_root(None if out is None else str(out))
    given = dict(choice.options) | {"run_dir": root, "strict": True}
    given["dump"] = "all" if everything else "changed"
    with recorded(root):
        path = dump_model(
            function,
            inputs,
            Options.resolve(given),
            Request(graphs, names, upto),
            train=choice.train,
            dynamic=choice.dynamic,
        )
    run = read_run(path)
    if as_json:
        print_json(
            "dump", run=str(path), graphs=_graphs(run), kernels=[k.name for k in run.kernels]
        )
        return Exit.OK
    click.echo(f"{path}\n")
    click.echo((path / "index.md").read_text(encoding="utf-8"), nl=False)
    return Exit.OK


def _graphs(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "name": graph.name,
            "states": [
                {
                    "index": state.index,
                    "pass": state.name,
                    "status": state.meta.get("status"),
                    "file": None if state.path is None else str(state.path),
                }
                for state in graph.states
            ],
        }
        for graph in run.graphs
    ]
