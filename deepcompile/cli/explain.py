"""`deepcompile explain`: what became of a model, and what can be done about it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.model_options import ModelChoice, model_options
from deepcompile.cli.output import json_option, print_json
from deepcompile.cli.recorded import recorded
from deepcompile.cli.terminal import progress, styled
from deepcompile.options import Options

if TYPE_CHECKING:
    from deepcompile.explanation import Explanation
    from deepcompile.explanation.recompiles import Recompile

Row = tuple[int, str | None, str, str]
"""Count, the user's line, what happened, advice."""


@click.command(epilog="Example: deepcompile explain model.py:make --top 3")
@model_options
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many of each to show.",
)
@click.option("--all", "everything", is_flag=True, help="Everything: kernels, calls, reasons.")
@json_option
def explain(choice: ModelChoice, top: int, everything: bool, as_json: bool) -> Exit:
    """Compile MODEL, run it, and tell what broke its graphs, what runs in eager and why.

    MODEL is file.py:factory, pkg.mod:factory or demo:NAME. Distinct graph breaks, fallbacks to
    eager and recompiles of three calls with the same inputs, each with the line of the program and
    what can be done. Exits with 3 when the model fails.
    """
    root = Options.resolve(choice.options).run_dir
    function, inputs = choice.load()
    import torch

    from deepcompile.comparison import model_errors
    from deepcompile.explanation import explain_with
    from deepcompile.explanation.recompiles import recompiles

    with (
        recorded(root),
        progress("explain", 2) as advance,
        torch.set_grad_enabled(choice.train is not False),
        model_errors("the model fails"),
    ):
        found = explain_with(function, inputs, {}, choice.options, choice.dynamic)
        advance("calling again")
        again = recompiles(function, *inputs)
        advance()
    if as_json:
        rows = [vars(one) for one in again]
        print_json("explain", model=choice.text, recompiles=rows, **_without_schema(found))
        return Exit.OK
    click.echo("\n".join(_page(found, again, None if everything else top)))
    if everything:
        click.echo("\n" + found.details())
    return Exit.OK


def _without_schema(found: Explanation) -> dict[str, object]:
    return {name: value for name, value in found.to_dict().items() if name != "schema"}


def _page(found: Explanation, again: Sequence[Recompile], top: int | None) -> Iterator[str]:
    yield found.summary()
    breaks: list[Row] = [(b.count, b.origin, b.reason, b.hint) for b in found.graph_breaks]
    eager: list[Row] = [
        (f.count, f.origin, f"{f.where}: {f.reason}", f.hint) for f in found.distinct_fallbacks
    ]
    failed: list[Row] = [
        (1, None, f"{name}: {error}", "`deepcompile bisect` finds the rewrite")
        for name, error in found.failed_passes
    ]
    recompiled: list[Row] = [
        (r.count, r.origin, f"{r.function} assumed {r.guard}", r.hint) for r in again
    ]
    yield from _section("graph breaks", breaks, top)
    yield from _section("fallbacks to eager", eager, top)
    if failed:
        yield from _section("passes left out", failed, top)
    yield from _section("recompiles in three calls with the same inputs", recompiled, top)
    if top is not None:
        yield "\nkernels, calls of ATen, rejected fusions: --all"


def _section(title: str, rows: Sequence[Row], top: int | None) -> Iterator[str]:
    yield f"\n{styled(title, bold=True)}: {len(rows) or 'none'}"
    for count, origin, what, hint in rows[:top]:
        times = f" ({count}x)" if count > 1 else ""
        yield f"  {_shown(origin)}{times}: {' '.join(what.split())}"
        if hint:
            yield f"    fix: {hint}"
    if top is not None and len(rows) > top:
        yield f"  and {len(rows) - top} more: --top {len(rows)}"


def _shown(origin: str | None) -> str:
    """A line of the user, relative to here where it is below."""
    if origin is None:
        return "(no line)"
    return origin.removeprefix(os.getcwd() + os.sep)
