"""`deepcompile compile`: kernels for a GPU that need not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.model_argument import load_model
from deepcompile.cli.output import json_option, print_json, table

if TYPE_CHECKING:
    from deepcompile.crosscompile import CrossCompiled

TARGETS = ("cuda:80", "cuda:90", "cuda:100")


@click.command(
    "compile",
    epilog="Example: deepcompile compile demo:transformer --target cuda:90 --run-dir runs",
)
@click.argument("model")
@click.option("--target", type=click.Choice(TARGETS), default="cuda:90", show_default=True)
@click.option("--run-dir", default="runs", show_default=True, help="Where kernels and PTX go.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Convert the model to.")
@json_option
@click.pass_context
def compile_model(
    ctx: click.Context, model: str, target: str, run_dir: str, dtype: str | None, as_json: bool
) -> None:
    """Compile MODEL for a GPU, without one: Triton, PTX, registers, spills and an estimate.

    MODEL is file.py:factory, pkg.mod:factory or demo:NAME; a factory returns a model and a tuple of
    inputs. It is traced on fake tensors, forward and backward; nothing runs. Exits with 1 when a
    kernel spills or is refused.
    """
    import torch

    from deepcompile.comparison import model_errors
    from deepcompile.cost.gpus import GPUS
    from deepcompile.crosscompile import cross_compile, require_triton

    require_triton()
    function, inputs = load_model(model)
    if dtype is not None and isinstance(function, torch.nn.Module):
        function = function.to(getattr(torch, dtype))
    with model_errors("the model cannot be traced"):
        found = cross_compile(
            function,
            inputs,
            GPUS[int(target.partition(":")[2])],
            options={"run_dir": run_dir},
            progress=lambda name: click.echo(f"compiling {name}", err=True),
        )
    if as_json:
        print_json("compile", **found.to_dict())
    else:
        click.echo(_page(found))
    if found.fallbacks or any(kernel.spilled for kernel in found.kernels):
        ctx.exit(Exit.NO)


def _page(found: CrossCompiled) -> str:
    rows = [
        (
            kernel.name,
            f"{kernel.bytes_moved / 1024:.1f}",
            f"{kernel.seconds * 1e6:.1f}",
            str(kernel.registers) if kernel.error is None else "-",
            str(kernel.spilled),
            f"{kernel.shared / 1024:.1f}",
            "" if kernel.distinct else "shared",
            ", ".join(op.removesuffix(".default") for op in kernel.ops[:4]),
        )
        for kernel in found.kernels
    ]
    header = ("kernel", "KiB", "us", "registers", "spilled", "shared KiB", "code", "from")
    distinct = sum(kernel.distinct for kernel in found.kernels)
    calls = sum(extern.seconds for extern in found.externs)
    count = f"{len(found.kernels)} kernels ({distinct} distinct)"
    lines = [
        table(header, rows),
        "",
        f"{count} and {len(found.externs)} library calls",
        f"estimate for one {found.gpu.name}: {found.seconds * 1e3:.3f} ms, "
        f"{calls * 1e3:.3f} ms of it in libraries",
    ]
    lines += [f"falls back: {graph} {why}" for graph, why in found.fallbacks]
    return "\n".join(lines)
