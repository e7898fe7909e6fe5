"""`deepcompile kernels bench` and `kernels repro`: one recorded kernel, alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.run_argument import chosen_run, is_run_text, unknown_run
from deepcompile.cli.terminal import note, progress
from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import KernelRecord
from deepcompile.inspect.states import kernel_named

LIMIT = 600
"""Seconds that building and timing one kernel may take."""


@click.command(
    epilog="\b\nExamples:\n  deepcompile kernels bench g0_forward.k0\n"
    "  deepcompile kernels bench runs/20260101T120000-train-812 k0 --threads 1 --json"
)
@click.argument("words", nargs=-1, required=True, metavar="[RUN] K")
@click.option("--threads", type=click.IntRange(min=1), help="Of a kernel of C++.")
@click.option("--seed", default=0, show_default=True, help="Of the inputs.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--no-check", is_flag=True, help="Do not compare it with what its nest means.")
@json_option
def bench(
    words: tuple[str, ...],
    threads: int | None,
    seed: int,
    rounds: int,
    no_check: bool,
    as_json: bool,
) -> Exit:
    """Build kernel K of RUN alone, check it, and time it beside a copy of as many bytes.

    Exit status 1 where its results are not those of its nest. Triton kernels are timed on a GPU;
    without one they run interpreted, for their numbers only.
    """
    record = _chosen(words)
    options = ["--json", "--time", "--seed", str(seed), "--rounds", str(rounds)]
    options += [] if no_check else ["--check"]
    options += ["--threads", str(threads)] if threads else []
    with (
        tempfile.TemporaryDirectory(prefix="deepcompile-kernel-") as folder,
        progress(f"kernel {record.name}") as advance,
    ):
        _write(record, Path(folder))
        found = _run(Path(folder), options, record)
        advance()
    differs = bool(found.get("check", {}).get("differs"))
    if as_json:
        print_json("kernels bench", **found)
    else:
        _print(found, record)
    return Exit.NO if differs else Exit.OK


@click.command(
    epilog="\b\nExample:\n  deepcompile kernels repro g0_forward.k0 -o k0\n"
    "  python k0/run.py --time"
)
@click.argument("words", nargs=-1, required=True, metavar="[RUN] K")
@click.option("-o", "--output", metavar="FOLDER", help="A new folder; K in this one if not given.")
@json_option
def repro(words: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Write a folder that builds kernel K of RUN from its dump alone and runs it on seeded inputs.

    It needs torch, and a C++ compiler or Triton; not deepcompile.
    """
    record = _chosen(words)
    folder = Path(output or record.name)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise click.UsageError(f"{folder} is there already; name another folder with -o")
    files = _write(record, folder)
    if as_json:
        print_json("kernels repro", kernel=record.name, folder=str(folder), files=files)
        return
    click.echo(str(folder / "run.py"))
    note(f"python {folder / 'run.py'} runs it; --time and --check do more")


def _chosen(words: Sequence[str]) -> KernelRecord:
    """Kernel K of the latest run, or of RUN.

    Raises:
        RunDirError: there is no such run or kernel.
    """
    if len(words) > 2:
        raise click.UsageError(f"RUN and K, not {len(words)} words")
    if len(words) == 2 and not is_run_text(words[0]):
        raise unknown_run(words[0])
    return kernel_named(chosen_run(words[0] if len(words) == 2 else None), words[-1])


def _write(record: KernelRecord, folder: Path) -> list[str]:
    from deepcompile.cli.kernel_alone.folder import write_folder

    try:
        return write_folder(record, folder)
    except OSError as error:
        raise click.UsageError(f"{folder} cannot be written: {error.strerror}") from None


def _run(folder: Path, options: list[str], record: KernelRecord) -> dict[str, Any]:
    command = [sys.executable, str(folder / "run.py"), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise RunDirError(f"kernel {record.name} took more than {LIMIT} s") from None
    try:
        found = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunDirError(
            f"kernel {record.name} does not run alone: {said}; `deepcompile kernels repro "
            f"{record.name}` writes what was run"
        ) from None
    assert isinstance(found, dict)
    return found


def _print(found: dict[str, Any], record: KernelRecord) -> None:
    click.echo(f"{record.name} on {found['device']}: {', '.join(record.ops)}")
    if "untimed" in found:
        click.echo(f"not timed: {found['untimed']}")
    if "seconds" in found:
        rows = [
            ("kernel", _us(found["seconds"]), f"{found['bytes_per_second'] / 1e9:.2f} GB/s", ""),
            (
                "copy of as many bytes",
                _us(found["copy_seconds"]),
                f"{found['bytes'] / found['copy_seconds'] / 1e9:.2f} GB/s",
                f"the kernel is at {found['roofline_share']:.0%} of it",
            ),
            ("cost model", _us(found["modelled_seconds"]), "", ""),
        ]
        click.echo(table(("WHAT", "TIME", "RATE", ""), rows))
    check = found.get("check")
    if check is not None and "skipped" in check:
        click.echo(f"not checked: {check['skipped']}")
    elif check is not None:
        verdict = "differs from" if check["differs"] else "agrees with"
        click.echo(f"{verdict} its nest: off by {check['difference']:.3g} at most")


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us"
