"""`deepcompile run`: a model in eager and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.model_options import ModelChoice, model_options, out_option
from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.recorded import recorded
from deepcompile.cli.run_argument import runs_root
from deepcompile.cli.run_script import RunCommand, command_of, run_script
from deepcompile.cli.terminal import note, progress, styled
from deepcompile.errors import VerificationError
from deepcompile.options import Options, format_size

if TYPE_CHECKING:
    from deepcompile.comparison import Comparison, Way

SHOWN = 8


@click.command(
    "run",
    cls=RunCommand,
    options_metavar="[OPTIONS]",
    epilog="Example: deepcompile run model.py:make --mode train --repeat 20; "
    "deepcompile run -- python train.py",
)
@model_options
@click.option("--no-check", is_flag=True, help="Do not compare results.")
@click.option("--rtol", type=float, help="Of the largest magnitude.  [default: by dtype]")
@click.option("--atol", type=float, default=0.0, show_default=True, help="Absolute error allowed.")
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Rounds in which both are timed in turn.",
)
@click.option(
    "--dump",
    type=click.Choice(["none", "changed", "all"]),
    default="none",
    show_default=True,
    help="Record the run, with these states of its graphs.",
)
@click.option("--all", "everything", is_flag=True, help="Show all results, not the worst only.")
@out_option
@json_option
@click.pass_context
def run_model(
    ctx: click.Context,
    choice: ModelChoice,
    no_check: bool,
    rtol: float | None,
    atol: float,
    repeat: int,
    dump: str,
    everything: bool,
    out: Path | None,
    as_json: bool,
) -> Exit:
    """Run MODEL in eager and compiled: errors, times, memory, graphs, fallbacks.

    MODEL is file.py:factory, pkg.mod:factory or demo:NAME; a factory returns a model and a tuple of
    inputs. Each output, each gradient (of a weighted sum of outputs) and each buffer that is
    written is compared; its error may be rtol times its largest magnitude, plus atol. Exits with 1
    when one differs by more, and with 3 when the model fails.

    With -- CMD in place of MODEL, the command runs as it is, with every torch.compile in it sent to
    deepcompile, recorded and not compared; --pipeline, --disable and --out apply. Exits with 3 when
    it fails.
    """
    command = command_of(ctx)
    if command is not None:
        _refuse_options_of_models(ctx)
        return run_script(command, runs_root(str(out) if out else None), choice.options, as_json)
    root = None
    given: dict[str, Any] = dict(choice.options)
    if dump != "none" or out is not None:
        root = runs_root(None if out is None else str(out))
        given |= {"run_dir": root, "dump": dump}
    else:
        root = Options.resolve(given).run_dir
    function, inputs = choice.load()
    from deepcompile.comparison import compare_with_eager
    from deepcompile.comparison.values import Tolerance
    from deepcompile.pipeline.rundir import open_run

    with recorded(root), progress("run", 2 + (repeat + 2 if repeat else 0)) as advance:
        try:
            found = compare_with_eager(
                function,
                inputs,
                given,
                train=choice.train,
                dynamic=choice.dynamic,
                tolerance=Tolerance(rtol, atol),
                check=not no_check,
                repeat=repeat,
                seed=choice.seed,
                progress=advance,
            )
        except VerificationError as error:
            click.echo(f"error: {error}", err=True)
            return Exit.NO
    run = None if root is None else open_run(root)
    path = None if run is None else str(run.path)
    if found.drawn_as_eager:
        note("random numbers are drawn as eager draws them, so that results can be compared")
    if as_json:
        print_json("run", model=choice.text, run=path, **found.to_dict())
    else:
        click.echo(page(found, everything, path))
    return Exit.OK if found.agrees else Exit.NO


def _refuse_options_of_models(ctx: click.Context) -> None:
    of_models = ("device", "dtype", "mode", "dynamic", "seed", "no_check", "rtol", "atol", "repeat")
    for name in of_models:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} is of a MODEL, not of a command")


def page(found: Comparison, everything: bool, path: str | None) -> str:
    """The result for people."""
    lines = [*_verdict(found, everything), *_costs(found), *_graphs(found)]
    if path is not None:
        lines.append(f"recorded in {path}")
    return "\n".join(lines)


def _verdict(found: Comparison, everything: bool) -> list[str]:
    if found.differences is None:
        return ["results were not compared", ""]
    wrong = [one for one in found.differences if not one.ok]
    count = len(found.differences)
    what = (
        "outputs, gradients and written buffers" if found.train else "outputs and written buffers"
    )
    if wrong:
        head = styled(f"{len(wrong)} of {count} {what} differ", fg="red")
    else:
        head = styled(f"all {count} {what} agree", fg="green")
    worst = sorted(found.differences, key=lambda one: (one.ok, -_share(one)))
    shown = worst if everything else worst[:SHOWN]
    rows = [
        (
            one.name,
            f"{one.dtype}{list(one.shape)}",
            "-" if one.max_error is None else f"{one.max_error:.2e}",
            "-" if one.relative is None else f"{one.relative:.1e}",
            f"{one.allowed:.1e}",
            one.problem,
        )
        for one in shown
    ]
    lines = [head]
    if rows:
        lines.append(table(("RESULT", "TYPE", "MAX ERROR", "RELATIVE", "ALLOWED", ""), rows))
    if len(shown) < count:
        lines.append(f"and {count - len(shown)} with smaller errors: --all")
    return [*lines, ""]


def _share(one: Any) -> float:
    """Of the allowed error; 0 where there is none."""
    if not one.max_error:
        return 0.0
    return float(one.max_error / one.allowed) if one.allowed else float("inf")


def _costs(found: Comparison) -> list[str]:
    if found.speedup is None:
        return [f"first compiled step {found.first_seconds:.2f} s", ""]

    def row(name: str, way: Way, factor: float | None) -> tuple[str, ...]:
        assert way.seconds is not None
        peak = "-" if way.peak is None else format_size(way.peak)
        return name, f"{way.seconds * 1e3:.3f}", f"{factor:.2f}x" if factor else "", peak

    rows = [row("eager", found.eager, None), row("compiled", found.compiled, found.speedup)]
    step = "forward and backward" if found.train else "forward"
    rounds = len(found.eager.samples)
    return [
        table(("", "MS", "SPEED", "PEAK"), rows),
        f"{step}, medians of {rounds} rounds in turn; first compiled step "
        f"{found.first_seconds:.2f} s",
        "",
    ]


def _graphs(found: Comparison) -> list[str]:
    rows = [
        (name, kind, str(kernels), str(externs), fallback or "")
        for name, kind, kernels, externs, fallback in found.graphs
    ]
    lines = ["no graph was compiled: all of it runs in eager"]
    if rows:
        lines = [table(("GRAPH", "KIND", "KERNELS", "ATEN CALLS", ""), rows)]
    for where, reason, origin in found.fallbacks:
        place = f" ({origin})" if origin else ""
        lines.append(styled(f"falls back: {where}{place}: {reason}", fg="yellow"))
    for reason, origin in dict.fromkeys(found.graph_breaks):
        lines.append(styled(f"graph break: {origin or '(no line)'}: {reason}", fg="yellow"))
    return lines
