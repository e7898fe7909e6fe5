"""Everything on a GPU in one command: `python -m benchmarks.gpu -o benchmarks/results/NAME.json`.

Exit codes: 0 done, 1 deepcompile failed or gave a wrong result somewhere, 2 a suite failed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from benchmarks.gpu.report import Report

# Shares of the time; what a suite leaves goes to those after it. The rest of the time is for
# compiles that end after their suite's time.
SHARES = {"launch": 0.08, "optimizer": 0.14, "training": 0.27, "inference": 0.16, "rows": 0.28}
WIDTH = 160


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--suite", "suites", multiple=True, type=click.Choice(list(SHARES)))
@click.option("--contender", "contenders", multiple=True, help="Only these, and torch.clone.")
@click.option("--minutes", default=8.0, show_default=True, help="End within about so long.")
@click.option("--quick", is_flag=True, help="Few cases and rounds: to see that it works.")
@click.option("--cpu-smoke", is_flag=True, help="Tiny sizes on the CPU: the numbers mean nothing.")
@click.option("--resume", is_flag=True, help="Go on with what the output file holds.")
@click.option("--commit", help="Recorded where git cannot tell it.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="JSON; a .txt goes beside it."
)
def main(
    suites: tuple[str, ...],
    contenders: tuple[str, ...],
    minutes: float,
    quick: bool,
    cpu_smoke: bool,
    resume: bool,
    commit: str | None,
    output: Path | None,
) -> None:
    """Measure deepcompile on this machine's GPU against eager, Inductor and Liger."""
    started = time.time()
    chosen = [suite for suite in SHARES if not suites or suite in suites]
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True) as folder:
        code = _run(
            chosen,
            contenders,
            started + minutes * 60,
            quick,
            cpu_smoke,
            resume,
            commit,
            output,
            Path(folder),
        )
    sys.exit(code)


def _run(
    chosen: Sequence[str],
    contenders: tuple[str, ...],
    end: float,
    quick: bool,
    smoke: bool,
    resume: bool,
    commit: str | None,
    output: Path | None,
    folder: Path,
) -> int:
    import torch
    from rich.console import Console

    from benchmarks.gpu.contenders import NAMES, STAND_IN
    from benchmarks.gpu.harness import DeviceBroken, Session, empty_caches
    from benchmarks.gpu.machine import describe, warm_up
    from benchmarks.gpu.plan import Plan
    from benchmarks.gpu.report import Report, show

    unknown = sorted(set(contenders) - set(NAMES))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(NAMES)}")
    try:
        plan = Plan.of_machine(
            smoke=smoke, quick=quick, contenders=(*contenders, "clone") if contenders else None
        )
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    torch._dynamo.config.recompile_limit = 64  # all contenders compile the same functions
    report = Report(describe(plan, commit), output, resume=resume)
    console = Console(record=True, width=None if sys.stdout.isatty() else WIDTH)
    if plan.smoke:
        console.print(f"[yellow]a smoke run: its numbers mean nothing; {STAND_IN}")
    session = Session(plan, report, folder)
    empty_caches(folder)
    warm_up(plan)
    broken = False
    begun = deadline = time.time()
    scale = (end - begun) * sum(SHARES.values()) / sum(SHARES[suite] for suite in chosen)
    try:
        for name in chosen:
            module = importlib.import_module(f"benchmarks.gpu.{name}")
            deadline += scale * SHARES[name]
            suite = report.suite(name)
            suite.data["notes"] = list(module.NOTES)
            console.rule(name)
            try:
                session.run_suite(suite, module.cases(session), deadline)
            except DeviceBroken as error:
                console.print(
                    f"[bold red]the device is broken after {error}; a new process goes on"
                )
                _go_on(report, end, folder, begun)
                return 2
            except Exception:  # one suite must not cost the results of the others
                traceback.print_exc()
                broken = True
            show(console, suite.data)
    finally:
        report.data["seconds"] += time.time() - begun
        report.running(None)
        report.write()
        if output is not None:
            output.with_suffix(".txt").write_text(console.export_text(), encoding="utf-8")
    console.print(f"{report.data['seconds']:.0f} s")
    if broken:
        return 2
    return 1 if report.ours_failed else 0


def _go_on(report: Report, end: float, folder: Path, begun: float) -> None:
    """Replace this process by one that resumes; returns where there is no file to resume from."""
    if report.path is None:
        return
    from benchmarks.compile import CACHE_VARIABLES

    report.running(None)
    report.data["seconds"] += time.time() - begun
    report.write()
    shutil.rmtree(folder, ignore_errors=True)
    for variable in CACHE_VARIABLES:
        del os.environ[variable]
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--resume"]
    os.execv(sys.executable, [*command, "--minutes", str((end - time.time()) / 60)])


if __name__ == "__main__":
    main()
