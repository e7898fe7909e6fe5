"""Compiles the kernels of runs for GPUs that are not there: which of them spill or are refused.

    DEEPCOMPILE_RUN_DIR=runs python -m tests.opinfo.driver --samples 1 --dtype float32 --mode static
    python -m tests.opinfo.gpu_code runs --capability 80 --capability 90

Each distinct kernel of the runs is written in Triton under the schedule by rule.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from deepcompile.codegen.triton_build import compile_function
from deepcompile.codegen.triton_kernel import emit_triton
from deepcompile.codegen.triton_schedule import plan_triton
from deepcompile.codegen.triton_spelling import CannotEmit
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel, print_kernel
from deepcompile.runtime.triton_modules import load_source


def kernels_of(runs: list[Path]) -> Iterator[tuple[str, Kernel]]:
    """Each distinct kernel of the runs, with the file it was found in first."""
    seen: set[str] = set()
    for run in runs:
        for path in sorted(run.rglob("nest.txt")):
            kernel = replace(parse_kernel(path.read_text(encoding="utf8")), name="k")
            text = print_kernel(kernel)
            if text not in seen:
                seen.add(text)
                yield str(path), kernel


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--capability", "capabilities", multiple=True, type=int, default=(80, 90))
@click.option("--shard", default="0/1", help="Which part of the kernels, e.g. 0/2.")
def main(runs: tuple[Path, ...], capabilities: tuple[int, ...], shard: str) -> None:
    """Compile every distinct kernel of RUNS; a line of JSON for each that is not well."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise click.UsageError("TRITON_INTERPRET=1 stands in for the compiler; unset it")
    part, parts = map(int, shard.split("/"))
    counts = {"compiled": 0, "spilled": 0, "refused": 0}
    for number, (path, kernel) in enumerate(kernels_of(list(runs))):
        if number % parts != part:
            continue
        for capability in capabilities:
            what, detail = _compile(kernel, capability)
            counts[what] += 1
            if what != "compiled":
                row = {"kernel": path, "capability": capability, what: detail}
                click.echo(json.dumps(row))
    click.echo(json.dumps(counts))
    sys.exit(1 if counts["spilled"] or counts["refused"] else 0)


def _compile(kernel: Kernel, capability: int) -> tuple[str, object]:
    try:
        code = emit_triton(kernel, plan_triton(kernel), "kernel")
        module = load_source(code.source, None)
        made = [compile_function(module, function, capability) for function in code.functions]
    except CannotEmit as reason:
        return "refused", str(reason)
    except Exception as error:  # whatever Triton raises is what is looked for
        return "refused", f"{type(error).__name__}: {error}"[:300]
    spilled = max((function.spilled for function in made), default=0)
    return ("spilled", spilled) if spilled else ("compiled", 0)


if __name__ == "__main__":
    main()
