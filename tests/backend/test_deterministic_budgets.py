"""`deterministic=True`: a memory budget changes no bit of the loss, nor of any gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory_models import NAMES, build
from deepcompile.budget.split import BudgetReport
from deepcompile.pipeline.registry import default_pipeline_text
from tests.backend.budget_steps import (
    Loss,
    blocks,
    report_of,
    rows,
    smallest,
    square_loss,
    step,
)

MODERATE = (0.08, 0.15, 0.22, 0.3)
"""Budgets as shares of the way from the smallest one to the peak without one.

From about a third of it on, lifetimes alone suffice, and programs have the same kernels."""


def check_same_bits(
    module: nn.Module,
    x: Any,
    loss: Loss = square_loss,
    shares: tuple[float, ...] = MODERATE,
    **options: Any,
) -> None:
    """Steps in budgets give what the step without one gives; in the smallest one otherwise made."""
    options = {"deterministic": True, **options}
    reference, _ = step(module, x, loss, **options)

    def check(budget: int) -> BudgetReport:
        found, record = step(module, x, loss, memory_budget=budget, **options)
        assert not [fields for event, fields in record.events if event == "fallback"]
        assert report_of(record).peak <= budget
        assert found.keys() == reference.keys()
        differing = [name for name in found if not torch.equal(found[name], reference[name])]
        assert not differing, f"{len(differing)} of {len(found)} in {budget} bytes: {differing}"
        return report_of(record)

    least = smallest(module, x, loss, **options)
    report = check(least)
    assert report.planned is not None or report.follow_lifetimes
    for share in shares:
        check(least + int((report.unplanned - least) * share))


class Normed(nn.Module):
    """Sums over rows (norm, softmax) and over columns (biases, weights of norms), with dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        weights = self.drop(torch.softmax(q @ k.mT / 8, -1))
        return x + self.drop(nn.functional.gelu(self.out(weights @ v)))


def normed(count: int = 3, width: int = 72) -> nn.Module:
    return nn.Sequential(*(Normed(width) for _ in range(count)), nn.LayerNorm(width))


class Gated(nn.Module):
    """Products whose operands are views: halves of another product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 4 * width)
        self.low, self.high = nn.Linear(2 * width, 8 * width), nn.Linear(2 * width, 8 * width)
        self.back = nn.Linear(8 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.wide(x).chunk(2, -1)
        return x + self.back(torch.tanh(self.low(low)) * torch.sigmoid(self.high(high)))


@pytest.mark.slow
def test_norms_attention_and_dropout() -> None:
    check_same_bits(normed(2), torch.randn(2, 100, 72), shares=(0.15,))


@pytest.mark.slow
def test_bf16_rounds_as_if_everything_were_stored() -> None:
    check_same_bits(blocks(drop=0.2).bfloat16(), rows().bfloat16(), shares=(0.15,))


@pytest.mark.slow
def test_products_of_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor where a table chooses between libraries."""
    monkeypatch.setattr("deepcompile.cost.gemm.processor_vendor", lambda: "AuthenticAMD")
    module = nn.Sequential(*(Gated(64) for _ in range(2)))
    check_same_bits(module, rows(count=1024), shares=())


@pytest.mark.slow
def test_kernels_in_triton() -> None:
    """As Triton's interpreter computes them; on a GPU the order is one of the kernel alone too."""
    check_same_bits(normed(2, 24), torch.randn(2, 10, 24), shares=(), codegen="triton")


@pytest.mark.slow
def test_symbolic_sizes() -> None:
    with torch._dynamo.config.patch(assume_static_by_default=False):
        check_same_bits(normed(), torch.randn(2, 100, 72), shares=(0.15,))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    module, x = normed(), torch.randn(4, 200, 72)
    check_same_bits(module, x, shares=(0.1,), threads=threads)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 5])
def test_kernels_of_few_nodes(most: int) -> None:
    """Without any budget: it is the same bits whatever shares a kernel."""
    model = build("bert", "small")
    reference, whole = step(model.module, model.batch, model.loss, deterministic=True)
    passes = default_pipeline_text().replace("fuse-rows", f"fuse-rows{{max-nodes={most}}}")
    found, parts = step(model.module, model.batch, model.loss, deterministic=True, passes=passes)
    assert sum(len(g.kernels) for g in parts.graphs) > 2 * sum(len(g.kernels) for g in whole.graphs)
    assert [name for name in found if not torch.equal(found[name], reference[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_models(name: str) -> None:
    model = build(name, "small")
    check_same_bits(model.module, model.batch, model.loss)
