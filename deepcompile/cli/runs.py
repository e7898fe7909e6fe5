"""`deepcompile runs`: what recorded runs hold, removing and packing them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.run_argument import (
    is_run_text,
    note_what_is_missing,
    read_root,
    run_argument,
    run_path,
    runs_root,
    unknown_run,
)
from deepcompile.cli.terminal import note
from deepcompile.cli.text import say
from deepcompile.inspect.housekeeping import checked_run, pack_run, remove_run, run_size
from deepcompile.inspect.reader import Event, Run, list_runs, read_run
from deepcompile.inspect.safe_files import visible_line
from deepcompile.options import format_size

_COUNTED = ("graphs", "kernels", "fallbacks")


@click.group(epilog="Example: deepcompile runs rm --keep 5")
def runs() -> None:
    """Recorded runs: list them, look into one, remove old ones, pack one to send.

    A compile records itself when `options={"run_dir": ROOT}` or DEEPCOMPILE_RUN_DIR is set.
    """


@runs.command("list", epilog="Example: deepcompile runs list .deepcompile/runs")
@click.argument("root", required=False)
@json_option
def list_command(root: str | None, as_json: bool) -> None:
    """The runs below ROOT, oldest first."""
    found = [read_run(path) for path in list_runs(runs_root(root))]
    if as_json:
        print_json("runs list", runs=[run_summary(run) for run in found])
        return
    rows = [(*run_row(run), format_size(run_size(run.path))) for run in found]
    say(table(("RUN", "STATUS", "GRAPHS", "KERNELS", "FALLBACKS", "SIZE"), rows))


@runs.command(epilog="Examples: deepcompile runs rm NAME; deepcompile runs rm --keep 5")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Remove all but the newest N.")
@click.option("--root", metavar="ROOT", help="With --keep: the folder of the runs.")
@json_option
def rm(names: tuple[str, ...], keep: int | None, root: str | None, as_json: bool) -> None:
    """Remove runs, without asking; what is no run is refused, and then nothing is removed."""
    if bool(names) == (keep is not None):
        raise click.UsageError("name runs, or say how many to keep: --keep N")
    if keep is not None:
        found = list(list_runs(runs_root(root)))
        chosen = [path for path in found[: max(0, len(found) - keep)] if not path.is_symlink()]
    else:
        chosen = [Path(_named(name)) for name in dict.fromkeys(names)]
    for path in chosen:
        checked_run(path)
    freed = {str(path): remove_run(path) for path in chosen}
    if as_json:
        print_json("runs rm", removed=list(freed), bytes=sum(freed.values()))
    else:
        say(f"removed {len(freed)} runs, {format_size(sum(freed.values()))}")


def _named(name: str) -> str:
    """The path of one run: a folder of runs is refused by what follows, not looked into."""
    place = runs_root(name)
    if not Path(place).is_dir() and "/" not in name:
        raise unknown_run(name)
    return place if name != "latest" else str(run_path(None))


@runs.command(epilog="Example: deepcompile runs pack -o report.zip")
@run_argument
@click.option("-o", "--output", metavar="FILE", help="The zip file.  [default: RUN.zip]")
@json_option
def pack(run: str | None, output: str | None, as_json: bool) -> None:
    """One file with all of RUN, for a bug report; look into it before you send it.

    It holds your program's graphs, kernels, file names, arguments and DEEPCOMPILE_ variables.
    Links are not followed.
    """
    if run is not None and not is_run_text(run):
        raise unknown_run(run)
    path = run_path(run)
    packed = pack_run(path, Path(output or f"{visible_line(path.resolve().name)}.zip"))
    for text in packed.left_out:
        note(f"left out: {text}")
    if as_json:
        print_json("runs pack", run=str(path), **{**dataclasses.asdict(packed),
                                                  "file": str(packed.file)})  # fmt: skip
    else:
        size = format_size(packed.file.stat().st_size)
        say(f"{packed.file}: {packed.files} files, {format_size(packed.bytes)}, packed {size}")


@runs.command(epilog="Example: deepcompile runs show latest")
@run_argument
@json_option
def show(run: str | None, as_json: bool) -> None:
    """One run: graphs with their passes, kernels with their origin, and fallbacks.

    RUN is a run directory, or a folder of runs: then its newest.
    """
    found = read_run(read_root(run))
    if as_json:
        print_json("runs show", **run_summary(found), **_contents(found))
    else:
        _print(found)
    note_what_is_missing(found)


def _print(found: Run) -> None:
    say(f"{found.path}  ({found.status})")
    say(f"pipeline: {found.info.get('pipeline') or '-'}")
    for graph in found.graphs:
        say(f"\ngraph {graph.name}")
        rows = [
            (
                f"  {state.index:03d}",
                state.name,
                state.status,
                f"{state.ms:.1f} ms" if state.ms is not None else "",
                _delta(state.op_delta),
            )
            for state in graph.states
        ]
        say(table(("  #", "PASS", "STATUS", "TIME", "OPS"), rows))
    if found.kernels:
        origins = [
            (k.name, ", ".join(k.origins) or "-", ", ".join(_counted(k.ops))) for k in found.kernels
        ]
        say("\n" + table(("KERNEL", "FROM", "OPS"), origins))
    for title, events in _notable(found.events):
        say(f"\n{title}")
        for event in events:
            where = event.fields.get("origin") or event.fields.get("graph") or ""
            reason = str(event.fields.get("reason") or event.fields.get("error") or "")
            say(f"  {where}: {next(iter(reason.splitlines()), '-')}")


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


def run_row(run: Run) -> tuple[str, ...]:
    """Name, status and counts of graphs, kernels and fallbacks."""
    return run.name, run.status, *(str(_count(run, what)) for what in _COUNTED)


def run_summary(run: Run) -> dict[str, Any]:
    """The same for a JSON document."""
    return {
        "path": str(run.path),
        "notes": list(run.notes),
        "status": run.status,
        **{what: _count(run, what) for what in _COUNTED},
    }


def _count(run: Run, what: str) -> int:
    """As run.json says; counted in the files where the run never ended."""
    counts = run.info.get("counts")
    known = counts.get(what) if isinstance(counts, dict) else None
    return known if isinstance(known, int) else len(getattr(run, what))


def _contents(run: Run) -> dict[str, Any]:
    return {
        "info": dict(run.info),
        "states": {g.name: [dict(s.meta) for s in g.states] for g in run.graphs},
        "kernel_list": [{"name": k.name, "files": k.files, **k.meta} for k in run.kernels],
        "events": [dataclasses.asdict(e) for e in run.events],
    }
