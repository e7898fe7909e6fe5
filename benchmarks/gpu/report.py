"""What was found, as JSON after each case and as tables at the end.

The JSON has the shape of `benchmarks.run`, so that `benchmarks.compare` reads it:
`{"metadata", "seconds", "suites": {name: {"measurements", "failures", "fallbacks", "skipped",
"done", "notes", "seconds", "complete"}}}`. A file `.running` beside it names what is being done.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu.contenders import NAMES, OURS

BASELINES = ("eager", "fused", "inductor", "inductor-max", "inductor-graphs", "liger")
LONGEST_TEXT = 2000


class SuiteReport:
    """The part of the JSON that one suite writes."""

    def __init__(self, name: str, data: dict[str, Any]) -> None:
        self.name = name
        self.data = data
        for key in ("measurements", "failures", "fallbacks", "skipped", "done"):
            data.setdefault(key, [])
        data.setdefault("suite", name)
        data.setdefault("notes", [])
        data.setdefault("seconds", 0.0)
        data["complete"] = False
        data["skipped"].clear()  # what an earlier run had no time for, this one has

    def measure(
        self,
        case: str,
        metric: str,
        contender: str,
        value: float,
        unit: str,
        samples: Sequence[float] = (),
    ) -> None:
        self.data["measurements"].append(
            {
                "name": f"{case}/{metric}/{contender}",
                "case": case,
                "metric": metric,
                "contender": contender,
                "value": value,
                "unit": unit,
                "samples": [float(f"{sample:.5g}") for sample in samples],
                "less_is_better": unit != "%",
            }
        )

    def fail(self, case: str, contender: str, kind: str, text: str) -> None:
        """`kind` is "error" or "wrong"."""
        entry = {"case": case, "contender": contender, "kind": kind, "error": text[:LONGEST_TEXT]}
        self.data["failures"].append(entry)

    def fall_back(self, case: str, contender: str, reasons: Sequence[str]) -> None:
        reasons = [reason[:LONGEST_TEXT] for reason in dict.fromkeys(reasons)]
        self.data["fallbacks"].append({"case": case, "contender": contender, "reasons": reasons})

    def skip(self, case: str, contender: str | None) -> None:
        """No time was left; `contender` None means all."""
        entry = {"case": case, "contender": contender, "reason": "the budget was spent"}
        self.data["skipped"].append(entry)

    def finish(self, case: str) -> None:
        self.data["done"].append(case)

    def is_done(self, case: str) -> bool:
        return case in self.data["done"]

    def has_failed(self, case: str, contender: str) -> bool:
        return any(
            (entry["case"], entry["contender"]) == (case, contender)
            for entry in self.data["failures"]
        )

    def add_seconds(self, seconds: float) -> None:
        self.data["seconds"] += seconds

    def end(self) -> None:
        """All cases had their turn or were skipped."""
        self.data["complete"] = not self.data["skipped"]

    def forget_unfinished(self) -> None:
        """Drop what a case had measured when the process ended in its middle."""
        done = set(self.data["done"])
        for key in ("measurements", "fallbacks"):
            self.data[key] = [entry for entry in self.data[key] if entry["case"] in done]


class Report:
    """The whole JSON, and where it is kept.

    Args:
        metadata: of this run.
        path: of the JSON; None keeps it in memory only.
        resume: go on with what the file holds, if it is there.
    """

    def __init__(
        self, metadata: dict[str, Any], path: Path | None = None, *, resume: bool = False
    ) -> None:
        self.path = path
        self.data: dict[str, Any] = {"seconds": 0.0, "suites": {}}
        if resume and path is not None and path.exists():
            self.data = json.loads(path.read_text(encoding="utf-8"))
            marker = self._marker(path)
            if marker.exists():
                self._blame(marker.read_text(encoding="utf-8"))
        self.data["metadata"] = metadata

    def suite(self, name: str) -> SuiteReport:
        suite = SuiteReport(name, self.data["suites"].setdefault(name, {}))
        suite.forget_unfinished()
        return suite

    @staticmethod
    def _marker(path: Path) -> Path:
        return path.with_suffix(".running")

    def _blame(self, running: str) -> None:
        """Leave out from now on what the last process never came back from."""
        name, case, contender = running.split("/")
        suite = self.suite(name)
        if not suite.has_failed(case, contender):
            suite.fail(case, contender, "error", "the process ended here")
        if contender == "timing":  # one of them all, nobody knows which
            suite.finish(case)

    def running(self, what: str | None) -> None:
        """Leave a note of what is being done, for when it never ends; None when it has."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            self._marker(self.path).unlink(missing_ok=True)
        else:
            self._marker(self.path).write_text(what, encoding="utf-8")

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".partial")
        fresh.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, self.path)

    @property
    def ours_failed(self) -> bool:
        """Whether deepcompile gave a wrong result or none, anywhere."""
        return any(
            entry["contender"].startswith(OURS)
            for suite in self.data["suites"].values()
            for entry in suite["failures"]
        )


def show(console: Console, suite: dict[str, Any]) -> None:
    """Print a suite: its table, the speed-ups, and loudly what failed."""
    console.print(_table(suite))
    for line in _speedups(suite):
        console.print(line)
    for entry in suite["failures"]:
        word = "WRONG RESULT" if entry["kind"] == "wrong" else "FAILED"
        where = escape(f"{entry['case']}: {entry['contender']}: {entry['error'][:300]}")
        console.print(f"[bold red]{word}[/]  {where}")
    for entry in suite["fallbacks"]:
        why = escape(f"{entry['case']}: {entry['contender']}: {'; '.join(entry['reasons'])[:300]}")
        console.print(f"[yellow]* in eager, in part[/]  {why}")
    if suite["skipped"]:
        names = [f"{e['case']} ({e['contender'] or 'all'})" for e in suite["skipped"]]
        console.print(f"[yellow]skipped, the budget was spent:[/] {escape(', '.join(names))}")
    for note in suite["notes"]:
        console.print(f"[dim]{escape(note)}")


def _table(suite: dict[str, Any]) -> Table:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    wrong = {(e["case"], e["contender"]) for e in suite["failures"] if e["kind"] == "wrong"}
    partly = {(entry["case"], entry["contender"]) for entry in suite["fallbacks"]}
    percent = any(entry["unit"] == "%" for entry in suite["measurements"])
    for entry in suite["measurements"]:
        name = entry["contender"]
        if percent and entry["unit"] == "s" and name != "clone":
            continue  # the same thing again
        if name == "clone" and entry["unit"] == "B":
            continue
        text = readable(entry["value"], entry["unit"])
        if (entry["case"], name) in wrong:
            text = f"[bold red]{text} WRONG[/]"
        elif (entry["case"], name) in partly:
            text += " *"
        metric = entry["metric"].removesuffix(" % of clone")
        cells.setdefault((entry["case"], metric), {})[name] = text
    columns = [name for name in NAMES if any(name in row for row in cells.values())]
    table = Table(title=f"{suite['suite']}: % of torch.clone" if percent else suite["suite"])
    for column in ("case", "metric"):
        table.add_column(column)
    for column in columns:
        table.add_column(column, justify="right")
    for (case, metric), row in cells.items():
        table.add_row(case, metric, *(row.get(column, "") for column in columns))
    return table


def _speedups(suite: dict[str, Any]) -> list[str]:
    """For each timed metric, ours against each baseline: geometric mean over cases."""
    bad = {(entry["case"], entry["contender"]) for entry in suite["failures"]}
    times: dict[str, dict[str, dict[str, float]]] = {}
    for entry in suite["measurements"]:
        if entry["unit"] == "s" and (entry["case"], entry["contender"]) not in bad:
            by_case = times.setdefault(entry["metric"], {})
            by_case.setdefault(entry["case"], {})[entry["contender"]] = entry["value"]
    lines = []
    for metric, by_case in times.items():
        for baseline in BASELINES:
            ratios = [
                row[baseline] / row[OURS]
                for row in by_case.values()
                if {baseline, OURS} <= row.keys() and row[OURS] > 0 and row[baseline] > 0
            ]
            if ratios:
                mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
                lines.append(
                    f"{metric}: {OURS} is {mean:.2f}x as fast as {baseline} "
                    f"(geometric mean of {len(ratios)}; {min(ratios):.2f} to {max(ratios):.2f})"
                )
    return lines


def readable(value: float, unit: str) -> str:
    """`value` with three digits, in a unit of its size."""
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
            if value * factor >= 1 or name == "us":
                return f"{value * factor:.3g} {name}"
    if unit == "B":
        return f"{value / 2**30:.2f} GiB" if value >= 2**27 else f"{value / 2**20:.2f} MiB"
    if unit == "%":
        return f"{value:.0f} %"
    return f"{value:.3g} {unit}".rstrip()
