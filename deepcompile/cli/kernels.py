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
from deepcompile.inspect.reader import KernelRecord, Run
from deepcompile.inspect.safe_files import visible
from deepcompile.inspect.states import kernel_named

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


@kernels.command("list", epilog="Example: deepcompile kernels list --graph g0_forward")
@run_argument
@click.option("--graph", metavar="NAME", help="Of this graph only.")
@json_option
def list_kernels(run: str | None, graph: str | None, as_json: bool) -> None:
    """All kernels of RUN with the ops and the lines of the program that they come from."""
    record = chosen_run(run)
    found = record.kernels
    if graph is not None:
        known = dict.fromkeys([k.graph for k in found] + [g.name for g in record.graphs])
        if graph not in known:
            raise RunDirError(f"{unknown_name('graph', graph, known)} in {record.name}")
        found = tuple(kernel for kernel in found if kernel.graph == graph)
    if as_json:
        print_json("kernels list", run=str(record.path), kernels=[_document(k) for k in found])
    else:
        rows = [
            (
                kernel.name,
                ", ".join(op if n == 1 else f"{op} x{n}" for op, n in _ops(kernel).items()) or "-",
                ", ".join(kernel.origins) or "-",
                " ".join(visible(file) for file in kernel.files) or "-",
            )
            for kernel in found
        ]
        say(table(("KERNEL", "OPS", "FROM", "FILES"), rows))
    note_what_is_missing(record)


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
