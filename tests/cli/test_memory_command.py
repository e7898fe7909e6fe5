"""Memory plans as files: shown, compared, edited, given back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompile.budget.plan_file import load_plans, save_plans
from deepcompile.budget.report import BudgetReport
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.errors import OptionError
from deepcompile.recording import recording


def model() -> nn.Module:
    """Four blocks that keep several matrices each."""
    torch.manual_seed(0)
    block = lambda: nn.Sequential(  # noqa: E731
        nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Tanh()
    )
    return nn.Sequential(*(block() for _ in range(4)))


def step(**options: Any) -> tuple[list[Tensor], BudgetReport]:
    """Gradients of a compiled step, and the report of its budget."""
    torch._dynamo.reset()
    net, x = model(), torch.linspace(-1, 1, 512 * 64).view(512, 64)
    with recording() as record:
        compiled = torch.compile(net, backend="deepep", options={"strict": True, **options})
        compiled(x).square().mean().backward()
    (report,) = record.budgets
    return [p.grad for p in net.parameters() if p.grad is not None], report


@pytest.fixture(scope="module")
def budgets() -> tuple[int, int]:
    """Two budgets that need a plan."""
    _, report = step(memory_budget=1 << 40)
    pinned = report.pinned.total
    return tuple(pinned + int(part * (report.unplanned - pinned)) for part in (0.5, 0.4))  # type: ignore[return-value]


def test_a_plan_is_shown_and_compared(
    budgets: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, budget in enumerate(budgets):
        step(memory_budget=budget, run_dir=str(tmp_path / f"runs{number}"))
    assert run(["memory", "show", str(tmp_path / "runs0")]) is Exit.OK
    shown = capsys.readouterr().out
    assert "predicted peak" in shown
    assert "recompute: " in shown
    assert "backward: highest at step" in shown
    assert run(["memory", "show", "--json", str(tmp_path / "runs0")]) is Exit.OK
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["facts"]["budget"] == budgets[0]
    assert max(plan["timeline"]["backward"]["live"]) <= budgets[0]
    assert run(["memory", "diff", str(tmp_path / "runs0"), str(tmp_path / "runs1")]) is Exit.NO
    assert "keep" in (found := capsys.readouterr().out)
    assert "other rates" not in found
    assert run(["memory", "diff", str(tmp_path / "runs0"), str(tmp_path / "runs0")]) is Exit.OK
    (file,) = tmp_path.glob("runs1/**/memory/*.json")
    file.write_text(file.read_text().replace('"rates_hash": "', '"rates_hash": "other-'))
    run(["memory", "diff", str(tmp_path / "runs0"), str(tmp_path / "runs1")])
    assert "planned by other rates of the device: table (" in capsys.readouterr().out


def test_what_has_no_plan_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "plan.json"
    empty.write_text("{}")
    assert run(["memory", "show", str(empty)]) is Exit.USAGE
    assert "no memory plan" in capsys.readouterr().err


def test_a_pinned_tensor_is_decided_as_the_file_says(
    budgets: tuple[int, int], tmp_path: Path
) -> None:
    expected, report = step(memory_budget=budgets[0])
    kept = [row for row in report.decisions if row.decision == "keep" and row.why == "chosen"]
    largest = max(kept, key=lambda row: row.nbytes)
    file = tmp_path / "plan.json"
    save_plans(file, [report.plan.pin([largest.tensor], "recompute")])
    assert load_plans(file)[report.graph].pinned == {largest.tensor}
    found, again = step(memory_budget=budgets[0], memory_plan=str(file))
    decided = {row.tensor: row for row in again.decisions}
    assert decided[largest.tensor].decision == "recompute"
    assert again.peak <= budgets[0]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_a_pin_that_cannot_be_met_is_refused(budgets: tuple[int, int], tmp_path: Path) -> None:
    _, report = step(memory_budget=budgets[0])
    plan = report.plan.to_dict()
    row = dict(plan["tensors"][0], tensor="nothing", pinned=True)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"schema": 1, "plans": [{**plan, "tensors": [row]}]}))
    with pytest.raises(OptionError, match="has no tensor nothing"):
        step(memory_budget=budgets[0], memory_plan=str(file))
    with pytest.raises(OptionError, match="without memory_budget"):
        step(memory_plan=str(file))


@pytest.mark.slow
def test_a_plan_for_another_graph_is_told(budgets: tuple[int, int], tmp_path: Path) -> None:
    _, report = step(memory_budget=budgets[0])
    plan = report.plan.to_dict() | {"graph": "another"}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"schema": 1, "plans": [plan]}))
    _, again = step(memory_budget=budgets[0], memory_plan=str(file))
    assert again.plan_unused


def test_pins_are_of_tensors_and_decisions_that_exist(budgets: tuple[int, int]) -> None:
    _, report = step(memory_budget=budgets[0])
    with pytest.raises(ValueError, match="no tensor"):
        report.plan.pin(["nothing"])
    with pytest.raises(ValueError, match="kept or recomputed"):
        report.plan.pin([report.decisions[0].tensor], "forget")


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 99, "plans": []}', '{"schema": 1}'])
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(OptionError, match="memory_plan"):
        load_plans(file)
    with pytest.raises(OptionError, match="No such file"):
        load_plans(tmp_path / "missing.json")
