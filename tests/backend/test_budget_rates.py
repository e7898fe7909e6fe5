"""Which rates a plan was made by: measured ones where there are any, and what says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import deepcompile
from deepcompile.cost.calibration import Measured, save_measured
from deepcompile.cost.rates import rates_of
from deepcompile.runtime.measured_rates import machine_of
from tests.backend.budget_steps import blocks, report_of, rows, smallest, step


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def measured(slower: float) -> Measured:
    """What a machine would measure that is slower than the table says."""
    table = rates_of("cpu", None, torch.get_num_threads())
    flops = {dtype: table.flops[dtype] / slower for dtype in ("f32", "bf16")}
    machine = machine_of(torch.device("cpu"))
    return Measured(
        machine, "2026-01-31", table.bandwidth / slower, table.launch * slower, flops, {}
    )


@pytest.mark.slow
def test_measured_rates_are_those_of_the_plan(tmp_path: Path) -> None:
    module, x = blocks(), rows()
    options = {"cache_dir": str(tmp_path), "rates": "auto", "memory_budget": smallest(module, x)}

    def facts(**more: object) -> dict[str, object]:
        return report_of(step(module, x, **(options | more))[1]).facts()

    before = facts()
    assert before["rates"] == "table"
    save_measured(tmp_path / "rates.json", [measured(slower=8.0)])
    after = facts()
    assert after["rates"] == "calibrated 2026-01-31"
    assert after["rates_hash"] != before["rates_hash"]
    assert after["recompute_seconds"] > 2 * before["recompute_seconds"] > 0
    ignored = facts(rates="table")
    assert {**ignored, "plan_seconds": 0, "trial_seconds": 0} == {
        **before,
        "plan_seconds": 0,
        "trial_seconds": 0,
    }


@pytest.mark.slow
def test_explain_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = blocks(), rows()
    save_measured(tmp_path / "rates.json", [measured(slower=8.0)])
    monkeypatch.setenv("DEEPCOMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DEEPCOMPILE_RATES", "auto")
    monkeypatch.setenv("DEEPCOMPILE_MEMORY_BUDGET", str(smallest(module, x)))
    assert "rates: calibrated 2026-01-31" in str(deepcompile.explain(module, x))


def test_a_broken_file_is_told_and_the_table_used(tmp_path: Path) -> None:
    (tmp_path / "rates.json").write_text("not measured")
    options = {"cache_dir": str(tmp_path), "rates": "auto", "memory_budget": "1GiB"}
    with pytest.warns(UserWarning, match="holds no measured rates"):
        _, record = step(blocks(1), rows(), **options)
    assert report_of(record).facts()["rates"] == "table"
