"""`deepcompile kernels`: generated kernels of a run. `list` and `show` read files only."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.run_argument import (
    chosen_run,
    is_run_text,
    kernel_names,
    note_what_is_missing,
    run_argument,
    run_names,
    unknown_run,
)
from deepcompile.cli.terminal import note
from deepcompile.cli.text import say, say_code
from deepcompile.errors import RunDirError, unknown_name
from deepcompile.inspect.program import read_programs
from deepcompile.inspect.reader import KernelRecord, Run
from deepcompile.inspect.report.kernels import Row, kernel_rows
from deepcompile.inspect.safe_files import visible
from deepcompile.inspect.states import kernel_named
from deepcompile.options import format_size

_BENCH = "deepcompile.cli.kernels_bench"
_LATER = ("bench", "repro")
_STAGES = {"source": ("source.",), "nest": ("nest.",), "meta": ("meta.json",)}


class _Kernels(click.Group):
    """Has the commands that run kernels too; their module is imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        later = _LATER if importlib.util.find_spec(_BENCH) else ()
        return [*super().list_commands(ctx), *later]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in _LATER or not importlib.util.find_spec(_BENCH):
            return found
        later: click.Command | None = getattr(importlib.import_module(_BENCH), cmd_name, None)
        return later


@click.group(cls=_Kernels, epilog="Example: deepcompile kernels show g0_forward.k3 --stage nest")
def kernels() -> None:
    """Generated kernels of a run: where each came from, and its files."""


@kernels.command("list", epilog="Example: deepcompile kernels list --sort time --roofline --calls")
@run_argument
@click.option("--graph", metavar="NAME", help="Of this graph only.")
@click.option("--sort", type=click.Choice(["time", "bytes"]), help="Largest first; else in order.")
@click.option("--calls", is_flag=True, help="Calls of ATen too.")
@click.option(
    "--roofline", is_flag=True, help="What part of the time moves bytes, and what part computes."
)
@json_option
def list_kernels(
    run: str | None, graph: str | None, sort: str | None, calls: bool, roofline: bool, as_json: bool
) -> None:
    """All kernels of RUN: modelled time, bytes, ops and the lines of the program they come from.

    Times are those of the cost model, for one call; `kernels bench` measures.
    """
    record = chosen_run(run)
    known = dict.fromkeys([k.graph for k in record.kernels] + [g.name for g in record.graphs])
    if graph is not None and graph not in known:
        raise RunDirError(f"{unknown_name('graph', graph, known)} in {record.name}")
    programs, problems = read_programs(record.path)
    rows = [
        row
        for row in kernel_rows(record, programs)
        if graph in (None, row["graph"]) and (calls or row["kind"] == "kernel")
    ]
    if sort is not None:
        rows.sort(key=lambda row: -_size(row, sort))
    if as_json:
        # A damaged record may name kernels that it does not hold.
        documents = {kernel.name: _document(kernel) for kernel in record.kernels}
        found = [
            {**row, **(documents.get(row["name"], {}) if row["kind"] == "kernel" else {})}
            for row in rows
        ]
        print_json("kernels list", run=str(record.path), kernels=found)
    else:
        header, cells = _columns(rows, roofline)
        say(table(header, cells))
    for problem in problems:
        note(problem)
    note_what_is_missing(record)


def _size(row: Row, sort: str) -> float:
    return float(row["seconds"] if sort == "time" else row["read"] + row["written"])


def _columns(rows: Sequence[Row], roofline: bool) -> tuple[list[str], list[list[str]]]:
    total = sum(row["seconds"] for row in rows)
    header = ["KERNEL", "TIME", "SHARE", "BYTES"]
    header += ["MOVING", "COMPUTING"] if roofline else []
    cells = []
    for row in rows:
        seconds, bytes_ = row["seconds"], row["read"] + row["written"]
        cell = [
            row["name"],
            f"{1e6 * seconds:.1f} us" if seconds else "-",
            f"{seconds / total:.1%}" if total and seconds else "-",
            format_size(int(bytes_)) if bytes_ else "-",
        ]
        if roofline:
            parts = (row["moving"], row["computing"])
            cell += [f"{part / seconds:.0%}" if seconds else "-" for part in parts]
        counted = Counter(op.removesuffix(".default") for op in row["ops"])
        ops = ", ".join(op if n == 1 else f"{op} x{n}" for op, n in counted.items())
        cells.append([*cell, ops or "-", ", ".join(row["lines"]) or "-"])
    return [*header, "OPS", "FROM"], cells


def _ops(kernel: KernelRecord) -> Counter[str]:
    return Counter(op.removesuffix(".default") for op in kernel.ops)


def _document(kernel: KernelRecord) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "graph": kernel.graph,
        "ops": list(kernel.ops),
        "origins": list(kernel.origins),
        "files": list(kernel.files),
        "meta": dict(kernel.meta),
    }


def _complete(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    words = [word for word in ctx.params.get("words") or () if word != text]
    if words:
        return kernel_names(words[0], text)
    return [*kernel_names(None, text), *run_names(text)]


@kernels.command(epilog="Example: deepcompile kernels show g0_forward.k3 --stage nest")
@click.argument("words", nargs=-1, required=True, metavar="[RUN] K", shell_complete=_complete)
@click.option(
    "--stage", metavar="STAGE", default="source", show_default=True,
    help="Which of its files: source, nest, meta, or what follows the last dot (ttir, ptx, ...).",
)  # fmt: skip
@json_option
def show(words: tuple[str, ...], stage: str, as_json: bool) -> None:
    """A stage of kernel K, of the latest run or of RUN; k3 will do where only one ends so."""
    if len(words) > 2:
        raise click.UsageError(f"RUN and K, not {len(words)} words")
    record, kernel = _chosen(words)
    file = _file_of(kernel, stage)
    text = kernel.read(file)
    if as_json:
        print_json("kernels show", run=str(record.path), stage=stage, file=file, text=text,
                   **_document(kernel))  # fmt: skip
    else:
        ops = ", ".join(_ops(kernel)) or "?"
        note(f"kernel {kernel.name}/{visible(file)}: {ops} from {', '.join(kernel.origins) or '?'}")
        say_code(text.rstrip("\n"))
    note_what_is_missing(record)


def _chosen(words: Sequence[str]) -> tuple[Run, KernelRecord]:
    if len(words) == 1:
        record = chosen_run(None)
    elif is_run_text(words[0]):
        record = chosen_run(words[0])
    else:
        raise unknown_run(words[0])
    return record, kernel_named(record, words[-1])


def _file_of(kernel: KernelRecord, stage: str) -> str:
    files = [*kernel.files, "meta.json"]
    starts = _STAGES.get(stage)
    for file in files:
        if file == stage or (file.startswith(starts) if starts else file.endswith(f".{stage}")):
            return file
    stages = {
        next((s for s, names in _STAGES.items() if file.startswith(names)), file.rpartition(".")[2])
        for file in files
    }
    raise RunDirError(f"{unknown_name('stage', stage, map(visible, stages))} of {kernel.name}")
