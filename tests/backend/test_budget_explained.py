"""`explain` under `memory_budget`: the peak that was predicted, and the one that is measured."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deepcompile
from deepcompile.explanation import Explanation
from tests.backend.budget_steps import blocks, rows

TOLERANCE = 0.05


class Model(nn.Module):
    """Large enough that its tensors matter beside what is small; with a loss."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.first, self.second = blocks(2), blocks(2)
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.breaks:
            torch._dynamo.graph_break()
        return self.second(x).square().mean()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def explained(breaks: bool, budget: str) -> Explanation:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the first step takes up to")
        patch.setenv("DEEPCOMPILE_MEMORY_BUDGET", budget)
        return deepcompile.explain(Model(breaks), rows(count=2048))


def check_measured(found: Explanation) -> None:
    assert found.measured_peak is not None
    predicted = max(budget.peak for budget in found.budgets)
    pinned = sum(budget.parameters + budget.optimizer for budget in found.budgets)
    # What is pinned would hide an error.
    measured = found.measured_peak - pinned
    assert measured == pytest.approx(predicted - pinned, rel=TOLERANCE)
    assert "peak of a step" in str(found)


def test_the_measured_peak_is_told_beside_the_predicted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPCOMPILE_RUN_DIR", str(tmp_path))
    found = explained(breaks=False, budget="24MiB")
    assert found.budgets[0].peak <= 24 << 20 < found.budgets[0].unplanned
    check_measured(found)
    (events,) = tmp_path.glob("**/events.jsonl")
    (event,) = (
        event
        for event in map(json.loads, events.read_text().splitlines())
        if event["kind"] == "memory-measured"
    )
    assert event["measured"] == found.measured_peak
    assert event["predicted"] == found.budgets[0].peak


@pytest.mark.slow
def test_of_graphs_that_share_a_budget_the_plans_that_stay_are_told() -> None:
    found = explained(breaks=True, budget="24MiB")
    assert len(found.budgets) == 2
    assert all(budget.peak <= 24 << 20 for budget in found.budgets)
    check_measured(found)


def test_without_a_budget_nothing_is_measured() -> None:
    found = deepcompile.explain(blocks(1), rows())
    assert found.measured_peak is None
    assert "peak of a step" not in str(found)


def test_nothing_is_told_while_somebody_profiles() -> None:
    with torch.profiler.profile():
        assert explained(breaks=False, budget="1TiB").measured_peak is None
