"""`deepcompile opt`: runs passes on the text of a graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.output import json_option, print_json
from deepcompile.cli.terminal import note
from deepcompile.errors import VerificationError, unknown_name
from deepcompile.inspect.resume import rest_of_run
from deepcompile.options import Options
from deepcompile.pipeline.protocol import GraphKind, Pass
from deepcompile.pipeline.spec import Pipeline, is_phased, parse_passes, print_passes

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from deepcompile.pipeline.manager import Application

KINDS = ("joint", "forward", "backward", "inference")


@dataclass(frozen=True)
class Work:
    """What is to be done to a graph."""

    passes: tuple[Pass, ...]
    options: Options


@click.command(
    epilog="Example: deepcompile opt .deepcompile/runs/RUN/graphs/g0_forward/000_input.ir "
    "-p canonicalise,fuse-rows"
)
@click.argument("file", metavar="FILE")
@click.option("-p", "--pipeline", "spec", help="The passes, as `passes pipeline` writes them.")
@click.option(
    "--from-run", is_flag=True, help="The passes that FILE's run applied next, with its options."
)
@click.option("--kind", type=click.Choice(KINDS), help="Of the graph, where its text is silent.")
@click.option(
    "--verify-each/--no-verify-each", default=True, show_default=True,
    help="Run the graph before and after each pass that changes it, and compare.",
)  # fmt: skip
@click.option(
    "--print-after", multiple=True, metavar="PASS", help="Also print what PASS makes, on stderr."
)
@json_option
def opt(
    file: str,
    spec: str | None,
    from_run: bool,
    kind: GraphKind | None,
    verify_each: bool,
    print_after: tuple[str, ...],
    as_json: bool,
) -> Exit:
    """Read a graph from FILE (- for stdin), run passes on it and print the result.

    FILE is a state of a run directory (graphs/GRAPH/NNN_pass.ir) or any text in that form. A
    pipeline with phases, joint(...),graph(...), gives a joint graph the first, an inference graph
    both, and other graphs the second. Options of passes are those of the environment, or with
    --from-run those of the run. Exits with 1 when a pass changes what the graph computes.
    """
    if (spec is None) == (not from_run):
        raise click.UsageError("say which passes to run: either -p PIPELINE or --from-run")
    text = _read(file)
    from deepcompile.capture.own_ops import register_own_ops
    from deepcompile.ir.graph_parser import parse_graph
    from deepcompile.ir.graph_printer import KIND, print_graph

    register_own_ops()
    graph = parse_graph(text, without_values=True)
    chosen: GraphKind = kind or graph.meta.get(KIND) or "inference"
    graph.meta[KIND] = chosen
    _note_missing_values(graph)
    work = _rest(file) if spec is None else _named(spec, chosen)
    names = [pass_.name for pass_ in work.passes]
    for name in print_after:
        if name not in names:
            raise click.BadParameter(unknown_name("pass", name, names), param_hint="--print-after")
    applied: list[Application] = []
    try:
        result = _run(graph, chosen, work, verify_each, print_after, applied)
    except VerificationError as error:
        click.echo(f"error: {error}", err=True)
        return Exit.NO
    printed = print_graph(result, kind=chosen)
    if as_json:
        facts = [_facts(application) for application in applied]
        pipeline = print_passes(work.passes)
        print_json("opt", kind=chosen, pipeline=pipeline, passes=facts, text=printed)
    else:
        click.echo(printed, nl=False)
    return Exit.OK


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from None
    except UnicodeDecodeError:
        raise click.BadParameter(f"{file} is no text", param_hint="FILE") from None


def _named(spec: str, kind: GraphKind) -> Work:
    options = Options.resolve()
    if not is_phased(spec):
        return Work(parse_passes(spec), options)
    pipeline = Pipeline.parse(spec)
    joint = pipeline.joint if kind in ("joint", "inference") else ()
    return Work((*joint, *(pipeline.graph if kind != "joint" else ())), options)


def _rest(file: str) -> Work:
    if file == "-":
        raise click.UsageError("--from-run needs a file of a run directory, not stdin")
    found = rest_of_run(Path(file))
    for name, why in found.left_out:
        note(f"left out, as in the run: {name} ({why})")
    # Which passes ran is known; where and whether to record is this command's own business.
    known = {k: v for k, v in found.options.items() if v is not None and k not in _NOT_RESUMED}
    options = Options.resolve(known, environ={})
    return Work(parse_passes(",".join(found.passes)) if found.passes else (), options)


_NOT_RESUMED = ("run_dir", "opt_limit", "disable", "verify", "passes", "dump")


def _note_missing_values(graph: GraphModule) -> None:
    from torch._subclasses.fake_tensor import FakeTensor

    missing = [name for name, held in graph.named_buffers() if isinstance(held, FakeTensor)]
    if missing:
        note(
            f"without values: {', '.join(missing)}; the text does not hold constants of this size, "
            "so graphs are checked but not run"
        )


def _run(
    graph: GraphModule,
    kind: GraphKind,
    work: Work,
    verify_each: bool,
    print_after: Sequence[str],
    applied: list[Application],
) -> GraphModule:
    from deepcompile.ir.graph_printer import print_graph
    from deepcompile.pipeline.instruments import Verify
    from deepcompile.pipeline.manager import PassManager

    def show(application: Application) -> None:
        applied.append(application)
        if application.pass_.name in print_after:
            text = print_graph(application.after, kind=kind)
            click.echo(f"# after {application.pass_.name}: {application.status}\n{text}", err=True)

    def said(event: str, **fields: Any) -> None:
        if event == "verify-skipped":
            note(f"not compared after {fields['pass']}: {fields['reason']}")

    options = replace(work.options, strict=True, verify=verify_each)
    verify = Verify(execute=verify_each, sink=said)
    manager = PassManager(work.passes, (verify, _Observer(show)), options)
    return manager.run(graph, kind, "text")


class _Observer:
    """An instrument that calls a function after each pass."""

    def __init__(self, after: Any) -> None:
        self._after = after

    def before_passes(self, graph_name: str, kind: GraphKind, graph: GraphModule) -> None:
        """Nothing to do."""

    def after_pass(self, application: Application) -> None:
        """Hand the application on."""
        self._after(application)


def _facts(application: Application) -> dict[str, Any]:
    from deepcompile.pipeline.instruments import describe

    return describe(application)
