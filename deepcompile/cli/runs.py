"""`deepcompile runs`: what recorded runs hold. Reads files only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.run_argument import run_argument, runs_root
from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import Event, Run, list_runs, read_run


@click.group()
def runs() -> None:
    """Read recorded runs.

    A compile records itself when `options={"run_dir": ROOT}` or DEEPCOMPILE_RUN_DIR is set.
    """


@runs.command("list")
@click.argument("root", required=False)
@json_option
def list_command(root: str | None, as_json: bool) -> None:
    """The runs below ROOT, oldest first."""
    found = [_readable(path) for path in list_runs(runs_root(root))]
    if as_json:
        print_json("runs list", runs=[_summary(run) for run in found])
        return
    rows = [
        (
            run.name,
            run.status,
            str(len(run.graphs)),
            str(len(run.kernels)),
            str(len(run.fallbacks)),
        )
        for run in found
    ]
    click.echo(table(("RUN", "STATUS", "GRAPHS", "KERNELS", "FALLBACKS"), rows))


def _readable(path: Path) -> Run:
    try:
        return read_run(path)
    except RunDirError:
        return Run(path, {"status": "unreadable"}, (), (), ())


@runs.command()
@run_argument
@json_option
def show(run: str | None, as_json: bool) -> None:
    """One run: graphs with their passes, kernels with their origin, and fallbacks.

    RUN is a run directory, or a folder of runs: then its newest.
    """
    found = read_run(runs_root(run))
    if as_json:
        print_json("runs show", **_summary(found), **_contents(found))
        return
    click.echo(f"{found.path}  ({found.status})")
    click.echo(f"pipeline: {found.info.get('pipeline') or '-'}")
    for graph in found.graphs:
        click.echo(f"\ngraph {graph.name}")
        rows = [
            (
                f"  {state.index:03d}",
                state.name,
                str(state.meta.get("status", "")),
                f"{state.meta['ms']:.1f} ms" if "ms" in state.meta else "",
                _delta(state.meta.get("op_delta") or {}),
            )
            for state in graph.states
        ]
        click.echo(table(("  #", "PASS", "STATUS", "TIME", "OPS"), rows))
    if found.kernels:
        origins = [
            (k.name, ", ".join(k.origins) or "-", ", ".join(_counted(k.ops))) for k in found.kernels
        ]
        click.echo("\n" + table(("KERNEL", "FROM", "OPS"), origins))
    for title, events in _notable(found.events):
        click.echo(f"\n{title}")
        for event in events:
            where = event.fields.get("origin") or event.fields.get("graph") or ""
            reason = event.fields.get("reason") or event.fields.get("error") or ""
            click.echo(f"  {where}: {str(reason).splitlines()[0] if reason else '-'}")


def _notable(events: Iterable[Event]) -> list[tuple[str, list[Event]]]:
    titles = {
        "fallback": "run in eager",
        "graph-break": "graph breaks",
        "pass-failed": "failed passes",
    }
    grouped = {kind: [e for e in events if e.kind == kind] for kind in titles}
    return [(titles[kind], found) for kind, found in grouped.items() if found]


def _counted(ops: Iterable[str]) -> list[str]:
    return [op if count == 1 else f"{op} x{count}" for op, count in Counter(ops).items()]


def _delta(delta: dict[str, int]) -> str:
    more = sum(count for count in delta.values() if count > 0)
    fewer = -sum(count for count in delta.values() if count < 0)
    return f"+{more} -{fewer}" if delta else ""


def _summary(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "status": run.status,
        "graphs": len(run.graphs),
        "kernels": len(run.kernels),
        "fallbacks": len(run.fallbacks),
    }


def _contents(run: Run) -> dict[str, Any]:
    return {
        "info": dict(run.info),
        "states": {g.name: [dict(s.meta) for s in g.states] for g in run.graphs},
        "kernel_list": [{"name": k.name, "files": k.files, **k.meta} for k in run.kernels],
        "events": [dataclasses.asdict(e) for e in run.events],
    }
