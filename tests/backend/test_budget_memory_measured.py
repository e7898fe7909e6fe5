"""What a step under `memory_budget` really takes on the CPU, against what was predicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory_models import NAMES, SIZES, build
from benchmarks.memory_modules import ImageSizes, TextSizes
from deepcompile.backend import recording
from deepcompile.budget.split import BudgetReport
from deepcompile.errors import MemoryBudgetError
from deepcompile.runtime.arena import POOL
from deepcompile.runtime.recycle import OUTPUTS
from tests.runtime.tracked import peak_bytes

pytestmark = pytest.mark.slow

MEDIUM: dict[str, TextSizes | ImageSizes] = {
    "gpt16": TextSizes(4, 128, 4, 352, batch=2, tokens=128, vocabulary=512),
    "llama": TextSizes(3, 128, 8, 352, batch=2, tokens=128, vocabulary=512, key_heads=2),
    "bert": TextSizes(3, 128, 4, 512, batch=4, tokens=128, vocabulary=512),
    "vit": ImageSizes((128,) * 3, batch=4, pixels=64, classes=100, heads=4, patch=8),
    "unet": ImageSizes((16, 32, 64), batch=2, pixels=64, classes=8, groups=8),
    "resnet": ImageSizes((32, 64, 128), batch=8, pixels=32, classes=10),
}
"""Models whose tensors are larger than what counts as small, and that take seconds."""


def measured(
    module: nn.Module, loss: Callable[[], Tensor], budget: str | int
) -> tuple[int, BudgetReport]:
    """Bytes of a step: those taken by forward and backward, and those pinned all through."""
    torch._dynamo.reset()
    options = {"strict": True, "memory_budget": budget}
    call = torch.compile(loss, backend="deepep", options=options)
    with recording() as record:
        call().backward()
    module.zero_grad()
    POOL.clear()
    OUTPUTS.clear()
    taken = peak_bytes(lambda: call().backward())
    module.zero_grad()
    (report,) = record.budgets
    return taken + report.pinned.total, report


def check_measured(module: nn.Module, loss: Callable[[], Tensor], part: float | None) -> None:
    """Measure in the smallest budget (0.0), nearly the one of today (1.0), or between; or none."""
    budget: str | int = "1TiB"
    if part is not None:
        with pytest.raises(MemoryBudgetError) as refused:
            measured(module, loss, 1)
        least = refused.value.smallest
        call = torch.compile(loss, backend="deepep", options={"memory_budget": budget})
        with recording() as record:
            call()
        budget = least + int((record.budgets[0].unplanned - 1 - least) * part)
    taken, report = measured(module, loss, budget)
    pinned = report.pinned.total
    assert report.peak <= report.budget
    # What is pinned would hide an error.
    assert taken - pinned == pytest.approx(report.peak - pinned, rel=0.05)


def mlp() -> nn.Module:
    layers = [[nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256), nn.Tanh()] for _ in range(4)]
    return nn.Sequential(*(module for layer in layers for module in layer))


@pytest.mark.parametrize("part", [0.0, 0.4, None])
def test_an_mlp(part: float | None) -> None:
    module, x = mlp(), torch.randn(512, 256)
    check_measured(module, lambda: module(x).square().mean(), part)


@pytest.mark.slow
def test_layers_of_attention() -> None:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.1, batch_first=True, norm_first=True)
    module = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    x = torch.randn(4, 64, 128)
    check_measured(module, lambda: module(x).square().mean(), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part"),
    [(name, part) for name in NAMES for part in (0.0, 0.5, None)],
)
def test_models(name: str, part: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES[name], "small", MEDIUM[name])
    model = build(name, "small")
    loss = lambda: model.loss(model.module, model.batch)  # noqa: E731
    check_measured(model.module, loss, part)


def test_views_of_one_storage_that_backward_gets_count_once() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(128, 3 * 128)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.mix(x).chunk(3, -1)
            heads = [part.unflatten(-1, (4, 32)).transpose(1, 2) for part in (q, k, v)]
            return nn.functional.scaled_dot_product_attention(*heads).tanh()

    module, x = Mixed(), torch.randn(8, 64, 128)
    check_measured(module, lambda: module(x).square().mean(), None)
