"""Run the suites, print their numbers and promises, keep them as JSON: `python -m benchmarks.run`.

Exit codes: 0 every promise holds, 1 one does not, 2 a suite failed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks._measure import Plan, SuiteResult, available_backends, metadata

BUSY_LOAD = 0.7
SUITES = (
    "import_time",
    "coverage",
    "rows",
    "compile",
    "crosscompile",
    "dumping",
    "launch",
    "optimizer",
    "step",
    "memory",
    "accuracy",
    "sharding",
    "report",
    "inspection",
    "planted",
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--suite", "suites", multiple=True, type=click.Choice(SUITES), help="Default: all.")
@click.option("--model", "models", multiple=True, type=click.Choice(Plan.models))
@click.option("--backend", "backends", multiple=True, type=click.Choice(Plan.backends))
@click.option("--quick", is_flag=True, help="Few rounds: to see that it works, not to quote.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the JSON goes.")
def main(
    suites: tuple[str, ...],
    models: tuple[str, ...],
    backends: tuple[str, ...],
    quick: bool,
    output: Path | None,
) -> None:
    """Measure deepcompile against eager and Inductor, in turns, on this machine."""
    plan = Plan(quick=quick, backends=available_backends(backends or Plan.backends))
    if models:
        plan = replace(plan, models=models)
    console = Console()
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        console.print(
            f"[yellow]load average {load:.1f}: others run here, do not quote these numbers"
        )
    report = {"metadata": metadata() | {"quick": quick}, "suites": {}}
    failed: list[str] = []
    broken: list[str] = []
    for suite in suites or SUITES:
        console.rule(suite)
        try:
            result = importlib.import_module(f"benchmarks.{suite}").run(plan)
        except Exception:  # one suite must not cost the results of the others
            traceback.print_exc()
            broken.append(suite)
            continue
        show(console, result)
        failed += [check.name for check in result.checks if not check.passed]
        report["suites"][suite] = result.to_json()
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if broken:
        console.print(f"[red]suites that failed: {', '.join(broken)}")
        sys.exit(2)
    if failed:
        console.print(f"[red]promises not held: {len(failed)}")
        sys.exit(1)


def show(console: Console, result: SuiteResult) -> None:
    """Print a table of the measurements, one row a subject and one column a backend, and checks."""
    console.print(_measurements(result))
    for check in result.checks:
        mark = "[green]holds[/]" if check.passed else "[red]FAILS[/]"
        console.print(f"{mark}  {check.name}: {check.value:.4g} {check.operator} {check.limit:.4g}")
    for note in result.notes:
        console.print(f"[dim]{note}")


def _measurements(result: SuiteResult) -> Table:
    table = Table()
    backends = [
        backend
        for backend in Plan.backends
        if any(f"/{backend}" in entry.name for entry in result.measurements)
    ]
    rows: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, float]] = {}
    for entry in result.measurements:
        backend = next((part for part in entry.name.split("/") if part in backends), "")
        subject = "/".join(part for part in entry.name.split("/") if part != backend)
        rows.setdefault(subject, {})[backend] = _readable(entry.value, entry.unit)
        values.setdefault(subject, {})[backend] = entry.value
    table.add_column(result.suite)
    columns = backends or [""]
    baselines = [
        name for name in ("eager", "inductor") if "deepep" in backends and name in backends
    ]
    for column in columns:
        table.add_column(column, justify="right")
    for baseline in baselines:
        table.add_column(f"deepep / {baseline}", justify="right")
    for subject, cells in rows.items():
        numbers = values[subject]
        ratios = [
            f"{numbers['deepep'] / numbers[baseline]:.3f}"
            if {"deepep", baseline} <= numbers.keys() and numbers[baseline]
            else ""
            for baseline in baselines
        ]
        table.add_row(subject, *(cells.get(column, "") for column in columns), *ratios)
    return table


def _readable(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 10 else f"{value:.1f} s"
    return f"{value:.3g} {unit}"


if __name__ == "__main__":
    main()
