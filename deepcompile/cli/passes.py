"""`deepcompile passes`: names, summaries and options, without importing torch."""

from __future__ import annotations

from typing import Any

import click

from deepcompile.cli.output import json_option, print_json, table
from deepcompile.options import Options
from deepcompile.pipeline.registry import PassInfo, default_registry
from deepcompile.pipeline.spec import Pipeline, print_passes


@click.group(epilog="Example: deepcompile passes show fuse-rows")
def passes() -> None:
    """List and describe passes and the pipeline."""


@passes.command("list", epilog="Example: deepcompile passes list --json")
@json_option
def list_passes(as_json: bool) -> None:
    """All passes with their summary."""
    found = default_registry().all()
    if as_json:
        print_json("passes list", passes=[_describe(info) for info in found])
        return
    rows = [(p.name, p.phase, "yes" if p.skippable else "no", p.summary) for p in found]
    click.echo(table(("PASS", "PHASE", "SKIPPABLE", "SUMMARY"), rows))


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
    click.echo(f"phase:       {info.phase}")
    click.echo(f"skippable:   {'yes' if info.skippable else 'no'}")
    click.echo(f"requires:    {', '.join(sorted(info.requires)) or '-'}")
    click.echo(f"establishes: {', '.join(sorted(info.establishes)) or '-'}")
    if info.options:
        rows = [(o.name, o.kind, repr(o.default)) for o in info.options]
        click.echo("\n" + table(("OPTION", "TYPE", "DEFAULT"), rows))


@passes.command(epilog="Example: deepcompile passes pipeline 'graph(canonicalise)'")
@click.argument("spec", required=False)
@json_option
def pipeline(spec: str | None, as_json: bool) -> None:
    """The pipeline of a compile, or SPEC checked and written out in full."""
    options = Options.resolve({"passes": spec} if spec is not None else None)
    found = Pipeline.of(options)
    if as_json:
        phases = {"joint": print_passes(found.joint), "graph": print_passes(found.graph)}
        print_json("passes pipeline", pipeline=str(found), phases=phases)
    else:
        click.echo(str(found))


def _describe(info: PassInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "doc": info.doc,
        "phase": info.phase,
        "skippable": info.skippable,
        "requires": sorted(info.requires),
        "establishes": sorted(info.establishes),
        "options": [{"name": o.name, "type": o.kind, "default": o.default} for o in info.options],
    }
