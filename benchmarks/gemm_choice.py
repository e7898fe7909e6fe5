"""MKL or oneDNN: fp32 matrix products of the benchmark models, forward and both gradients.

`torch.mm` calls MKL; `mkldnn._linear_pointwise` calls oneDNN's inner product, which computes
`x @ w.T` for a row-major `x`. `python -m benchmarks.gemm_choice [-o file.json]`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks._measure import alternate, geometric_mean, metadata, paired_ratio

# (rows, inputs, outputs) of each linear layer, by the model that has it.
LINEARS = {
    "demo qkv": (2048, 256, 768),
    "demo out": (2048, 256, 256),
    "demo up": (2048, 256, 1408),
    "demo down": (2048, 704, 256),
    "demo head": (2048, 256, 2048),
    "bert/gpt2 qkv": (2048, 256, 768),
    "bert/gpt2 square": (2048, 256, 256),
    "bert/gpt2 up": (2048, 256, 1024),
    "bert/gpt2 down": (2048, 1024, 256),
    "bert/gpt2 head": (2048, 256, 8192),
    "vit square": (2120, 256, 256),
    "vit up": (2120, 256, 1024),
    "vit down": (2120, 1024, 256),
}


@dataclass(frozen=True)
class Product:
    """`left @ right` as a training step has it: which operands are transposed views."""

    name: str
    left: Tensor
    right: Tensor

    def exact(self) -> Tensor:
        return self.left.double() @ self.right.double()


@dataclass(frozen=True)
class Choice:
    """How the two libraries did on one product. `ratio` is MKL's time over oneDNN's."""

    name: str
    shape: tuple[int, int, int]
    mkl_seconds: float
    onednn_seconds: float
    ratio: float
    mkl_gflops: float
    onednn_gflops: float
    mkl_error: float
    onednn_error: float
    equal_bits: bool


def onednn(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` by oneDNN; the weight is `right.t()`, contiguous or not."""
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")


def products(name: str, rows: int, inputs: int, outputs: int) -> list[Product]:
    """Forward `x w^T`, input gradient `g w`, weight gradient `g^T x`, as autograd spells them."""
    x, grad = torch.randn(rows, inputs), torch.randn(rows, outputs)
    weight = torch.randn(outputs, inputs)
    return [
        Product(f"{name} forward", x, weight.t()),
        Product(f"{name} dX", grad, weight),
        Product(f"{name} dW", grad.t(), x),
    ]


def measure(product: Product, rounds: int) -> Choice:
    """Time both libraries in turns and compare both with fp64."""
    left, right = product.left, product.right
    contenders: dict[str, Callable[[], object]] = {
        "mkl": lambda: torch.mm(left, right),
        "onednn": lambda: onednn(left, right),
    }
    samples = alternate(contenders, rounds=rounds, seconds=0.02, warmup=3)
    flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    mkl, dnn = (statistics.median(samples[name]) for name in ("mkl", "onednn"))
    exact = product.exact()
    largest = float(exact.abs().max())
    results = torch.mm(left, right), onednn(left, right)
    errors = [float((result.double() - exact).abs().max()) / largest for result in results]
    return Choice(
        product.name,
        (left.shape[0], left.shape[1], right.shape[1]),
        mkl,
        dnn,
        paired_ratio(samples["mkl"], samples["onednn"]),
        flops / mkl / 1e9,
        flops / dnn / 1e9,
        *errors,
        equal_bits=bool(torch.equal(*results)),
    )


def executed(product: Product) -> list[str]:
    """What oneDNN's verbose log shows for one call: a reorder would be a copy of an operand.

    A transposed left operand is copied before, by ATen: the log then shows it as row-major.
    """
    strided = [tensor.stride(0) == 1 for tensor in (product.left, product.right)]
    shapes = tuple(product.left.shape), tuple(product.right.shape)
    program = f"""
import torch
def make(shape, strided):
    return torch.randn(*reversed(shape)).t() if strided else torch.randn(*shape)
left, right = make({shapes[0]}, {strided[0]}), make({shapes[1]}, {strided[1]})
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )
    return [line for line in done.stdout.splitlines() if ",exec," in line]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=15, show_default=True)
@click.option("--layouts", is_flag=True, help="Show oneDNN's own log for each operand layout.")
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(rounds: int, layouts: bool, output: Path | None) -> None:
    """Compare MKL and oneDNN on each product; a ratio above 1 favours oneDNN."""
    console = Console()
    torch.manual_seed(0)
    if layouts:
        for product in products("demo up", *LINEARS["demo up"]):
            click.echo("\n  ".join((product.name, *executed(product))))
        return
    table = Table("product", "m, k, n", "MKL GF/s", "oneDNN GF/s", "MKL / oneDNN", "errors", "bits")
    choices = []
    measured: set[tuple[int, int, int]] = set()
    for name, sizes in LINEARS.items():
        if sizes in measured:
            continue
        measured.add(sizes)
        for product in products(name, *sizes):
            choice = measure(product, rounds)
            choices.append(choice)
            table.add_row(
                choice.name,
                ", ".join(map(str, choice.shape)),
                f"{choice.mkl_gflops:.0f}",
                f"{choice.onednn_gflops:.0f}",
                f"{choice.ratio:.2f}",
                f"{choice.mkl_error:.1e} {choice.onednn_error:.1e}",
                "equal" if choice.equal_bits else "differ",
            )
    console.print(table)
    for kind in ("forward", "dX", "dW"):
        ratios = [choice.ratio for choice in choices if choice.name.endswith(kind)]
        console.print(f"{kind}: geometric mean of MKL / oneDNN {geometric_mean(ratios):.3f}")
    if output:
        report = {"metadata": metadata(), "products": [asdict(choice) for choice in choices]}
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
