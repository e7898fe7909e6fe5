"""Compare two results of `benchmarks.run`: `python -m benchmarks.compare A.json B.json`.

Exit codes: 0 no measurement is worse than the threshold, 1 one is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

WHERE = ("device", "threads", "commit", "date", "quick")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threshold", default=0.10, show_default=True, help="Relative change that counts.")
def main(before: Path, after: Path, threshold: float) -> None:
    """Print each measurement of both files and how it changed."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    console = Console()
    for key in WHERE:
        values = old["metadata"].get(key), new["metadata"].get(key)
        note = "" if values[0] == values[1] or key in ("commit", "date") else "  [yellow]differs"
        console.print(f"{key:8} {values[0]}  ->  {values[1]}{note}")
    first, second = dict(measurements(old)), dict(measurements(new))
    table = Table()
    for column in ("measurement", "before", "after", "after / before", ""):
        table.add_column(column, justify="left" if column in ("measurement", "") else "right")
    worse = 0
    for name in (name for name in first if name in second):
        verdict = judge(first[name], second[name], threshold)
        worse += verdict == "worse"
        a, b = first[name]["value"], second[name]["value"]
        ratio = f"{b / a:.3f}" if a else ""
        table.add_row(name, f"{a:.4g}", f"{b:.4g} {first[name]['unit']}", ratio, verdict)
    console.print(table)
    only = {"only before": first.keys() - second.keys(), "only after": second.keys() - first.keys()}
    for label, names in only.items():
        if names:
            console.print(f"{label}: {', '.join(sorted(names))}")
    sys.exit(1 if worse else 0)


def measurements(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All measurements of a report, each under `suite: name`."""
    for suite, result in report["suites"].items():
        for entry in result["measurements"]:
            yield f"{suite}: {entry['name']}", entry


def judge(before: dict[str, Any], after: dict[str, Any], threshold: float) -> str:
    """`better`, `worse`, or nothing where the change is within the threshold."""
    a, b = before["value"], after["value"]
    if abs(b - a) <= threshold * abs(a):
        return ""
    return "better" if (b < a) == before["less_is_better"] else "worse"


if __name__ == "__main__":
    main()
