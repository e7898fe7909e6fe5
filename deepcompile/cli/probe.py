"""`deepcompile probe`: what `bisect` asks of each of its children, once and by hand."""

from __future__ import annotations

import sys
from typing import Any

import click

from deepcompile.child.probe import SKIP, Fail, Question, ask, is_of_kind, judged
from deepcompile.cli.exit import Exit
from deepcompile.cli.model_argument import load_model
from deepcompile.cli.output import json_option, print_json


@click.command(
    epilog="Example: DEEPCOMPILE_OPT_LIMIT=3 deepcompile probe model.py:factory --fail numerics"
)
@click.argument("model")
@click.option("--fail", type=click.Choice(["numerics", "crash", "slow"]), default="numerics")
@click.option("--seed", type=int, default=0, help="Of the factory and of all random numbers.")
@click.option("--mode", type=click.Choice(["auto", "train", "infer"]), default="auto")
@click.option("--dynamic", is_flag=True, help="Compile with symbolic sizes.")
@click.option("--rtol", type=float, help="Largest relative error; default: by dtype.")
@click.option("--slower-than", type=float, metavar="SECONDS", help="What is slow, for a step.")
@click.option("--eager", is_flag=True, help="Leave the compiler out.")
@json_option
def probe(slower_than: float | None, fail: Fail, as_json: bool, **fields: Any) -> Exit:
    """Run MODEL in eager and compiled, with the options of the environment.

    Exits with 0 if both agree, 1 if they do not (or it crashes, or is slow: --fail), and 125 if it
    fails in another way. MODEL is file.py:factory, pkg.mod:factory or demo:NAME.
    """
    from deepcompile.comparison import model_errors

    with model_errors("the model itself fails"):
        answer = ask(Question(**fields, timed=fail == "slow"), load_model)
    if slower_than is not None:
        answer = judged(answer, slower_than)
    failure = answer.failure
    if as_json:
        print_json("probe", **answer.to_dict())
    elif failure is None:
        time = f", {answer.seconds * 1e3:.3g} ms" if answer.seconds is not None else ""
        click.echo(f"good{time}")
    else:
        click.echo(f"bad: {failure}")
    if failure is None:
        return Exit.OK
    if not is_of_kind(failure, fail):
        sys.exit(SKIP)
    return Exit.NO
