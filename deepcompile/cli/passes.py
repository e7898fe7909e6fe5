"""`deepcompile passes`: names, summaries and options, without importing torch."""

from __future__ import annotations

from typing import Any

import click

from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.terminal import note
from deepcompile.options import Options
from deepcompile.pipeline.registry import PassInfo, default_registry
from deepcompile.pipeline.spec import Pipeline, print_passes

_KERNELS = {"cpu": "C++", "cuda": "Triton"}


@click.group(epilog="Example: deepcompile passes show fuse-rows")
def passes() -> None:
    """List and describe passes and the pipeline."""


@passes.command("list", epilog="Example: deepcompile passes list --json")
@json_option
def list_passes(as_json: bool) -> None:
    """All passes with their summary; those of other packages by name, not loaded."""
    registry = default_registry()
    for problem in registry.problems:
        note(f"note: {problem}")
    own, plugins = registry.own(), registry.plugins()
    if as_json:
        rows = [_describe(info) for info in own]
        rows += [{"name": p.name, "source": p.source, "target": p.target} for p in plugins]
        print_json("passes list", passes=rows, problems=list(registry.problems))
        return
    lines: list[tuple[str, ...]] = [
        (p.name, p.phase, "yes" if p.skippable else "no", p.summary) for p in own
    ]
    lines += [(p.name, "-", "-", f"from {p.source}: passes show {p.name}") for p in plugins]
    click.echo(table(("PASS", "PHASE", "SKIPPABLE", "SUMMARY"), lines))


@passes.command(epilog="Example: deepcompile passes show fuse-rows")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """One pass: what it does, before and after, and its options."""
    info = default_registry().get(name)
    if as_json:
        print_json("passes show", **{"pass": _describe(info)})
        return
    click.echo(f"{info.name}: {info.doc}\n")
    if info.source:
        click.echo(f"from:        {info.source}, {info.target}")
    click.echo(f"phase:       {info.phase}")
    click.echo(f"skippable:   {'yes' if info.skippable else 'no'}")
    click.echo(f"requires:    {', '.join(sorted(info.requires)) or '-'}")
    click.echo(f"establishes: {', '.join(sorted(info.establishes)) or '-'}")
    if info.options:
        rows = [(o.name, o.kind, repr(o.default)) for o in info.options]
        click.echo("\n" + table(("OPTION", "TYPE", "DEFAULT"), rows))


@passes.command(epilog="Example: deepcompile passes pipeline --upto joint:canonicalise")
@click.argument("spec", required=False)
@click.option("--upto", metavar="PASS", help="Up to the last PASS; joint:PASS is that of a phase.")
@click.option(
    "--target", type=click.Choice(list(_KERNELS)), help="Say what makes kernels after the passes."
)
@json_option
def pipeline(spec: str | None, upto: str | None, target: str | None, as_json: bool) -> None:
    """The pipeline of a compile, or SPEC checked and written out in full.

    Passes are the same for all targets, which differ in the language that kernels are made in.
    """
    options = Options.resolve({"passes": spec} if spec is not None else None)
    found = Pipeline.of(options)
    if upto is not None:
        found = found.upto(upto)
    if as_json:
        phases = {"joint": print_passes(found.joint), "graph": print_passes(found.graph)}
        more = {"target": target, "kernels": _KERNELS[target]} if target else {}
        print_json("passes pipeline", pipeline=str(found), phases=phases, **more)
        return
    click.echo(str(found))
    if target:
        note(f"then kernels in {_KERNELS[target]}")


def _describe(info: PassInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "doc": info.doc,
        "phase": info.phase,
        "skippable": info.skippable,
        "requires": sorted(info.requires),
        "establishes": sorted(info.establishes),
        "source": info.source or "deepcompile",
        "target": info.target,
        "options": [{"name": o.name, "type": o.kind, "default": o.default} for o in info.options],
    }
