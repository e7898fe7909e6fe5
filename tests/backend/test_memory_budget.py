"""`memory_budget`: the step fits by prediction, and gives what the step without a budget gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory_models import NAMES, build
from deepcompile.backend import recording
from deepcompile.budget import split
from deepcompile.budget.split import BudgetReport
from deepcompile.codegen.steps import LifetimeStep
from deepcompile.errors import DeepCompileError, MemoryBudgetError, OptionError
from deepcompile.options import Options
from tests.backend.budget_steps import (
    TOLERANCE,
    Loss,
    blocks,
    check_close,
    report_of,
    rows,
    smallest,
    square_loss,
    step,
)


def check_smallest_budget(
    module: nn.Module,
    x: Any,
    loss: Loss = square_loss,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> BudgetReport:
    """The step in the smallest budget gives what it gives without one."""
    budget = smallest(module, x, loss, **options)
    values, record = step(module, x, loss, steps=2, memory_budget=budget, **options)
    report = report_of(record)
    assert report.follow_lifetimes
    assert report.peak <= budget < report.unplanned
    assert any(d.decision == "recompute" for d in report.decisions) == (report.planned is not None)
    check_close(values, step(module, x, loss, steps=2, **options)[0], tolerance)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_models_in_the_smallest_budget(name: str) -> None:
    model = build(name, "small")
    options = {"deterministic": True}
    reference, _ = step(model.module, model.batch, model.loss, **options)
    budget = smallest(model.module, model.batch, model.loss, **options)
    mine, record = step(model.module, model.batch, model.loss, memory_budget=budget, **options)
    report = report_of(record)
    assert report.follow_lifetimes
    assert report.peak <= budget < report.unplanned
    assert not [fields for event, fields in record.events if event == "fallback"]
    check_close(mine, reference)
    assert torch.equal(mine["loss"], reference["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("rng", ["philox", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_models_from_the_smallest_budget_to_none(name: str, rng: str) -> None:
    model = build(name, "small")
    reference, _ = step(model.module, model.batch, model.loss, rng=rng)
    least = smallest(model.module, model.batch, model.loss, rng=rng)
    _, record = step(model.module, model.batch, model.loss, rng=rng, memory_budget="1TiB")
    most = report_of(record).unplanned
    for part in range(5):
        budget = least + (most - least) * part // 4
        mine, record = step(model.module, model.batch, model.loss, rng=rng, memory_budget=budget)
        assert report_of(record).peak <= budget
        check_close(mine, reference)


def test_one_byte_below_the_smallest_is_refused_before_anything_runs() -> None:
    module, x = blocks(), rows()
    least = smallest(module, x)
    options = {"memory_budget": least - 1}
    compiled = torch.compile(square_loss, backend="deepep", options=options)
    with recording() as record, pytest.raises(MemoryBudgetError) as refused:
        compiled(module, x)
    assert (refused.value.budget, refused.value.smallest) == (least - 1, least)
    assert str(least) in str(refused.value)
    assert not record.graphs
    assert not record.budgets
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_budget_that_is_not_needed_changes_nothing() -> None:
    module, x = blocks(2), rows()
    _, plain = step(module, x)
    _, budgeted = step(module, x, memory_budget="64GiB")
    report = report_of(budgeted)
    assert report.planned is None
    assert not report.follow_lifetimes
    assert report.peak == report.unplanned
    assert [graph.code.source for graph in budgeted.graphs] == [
        graph.code.source for graph in plain.graphs
    ]
    steps = [step for graph in budgeted.graphs for step in graph.spec.steps]
    assert not [step for step in steps if isinstance(step, LifetimeStep)]


def test_lifetimes_alone_are_tried_before_anything_is_computed_again() -> None:
    module, x = blocks(2), rows()
    reference, record = step(module, x, memory_budget="64GiB")
    budget = report_of(record).unplanned - 1
    mine, record = step(module, x, memory_budget=budget)
    report = report_of(record)
    assert report.follow_lifetimes
    assert report.planned is None
    assert report.peak <= budget
    check_close(mine, reference, 0.0)


@pytest.mark.parametrize(
    "budget", ["0", 0, "0%", -1, "-3GiB", "150%", "12 parsecs", "", "GiB", "nan", True, 1.5, ()]
)
def test_a_budget_that_is_none_names_the_option(budget: Any) -> None:
    with pytest.raises(OptionError, match="memory_budget"):
        Options.resolve({"memory_budget": budget})
    compiled = torch.compile(nn.Linear(2, 2), backend="deepep", options={"memory_budget": budget})
    with pytest.raises(OptionError, match="memory_budget"):
        compiled(torch.randn(1, 2))


@pytest.mark.parametrize(("budget", "size"), [("3GiB", 3 << 30), ("70%", 700), ("auto", 450)])
def test_budgets_become_bytes(budget: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "total_memory", lambda device: 1000)
    monkeypatch.setattr(split, "free_memory", lambda device: 500)
    resolved = Options.resolve({"memory_budget": budget}).memory_budget
    assert resolved is not None
    assert split.budget_bytes(resolved, torch.device("cpu")) == size


@pytest.mark.parametrize("budget", ["auto", "70%", "0.5 TiB"])
def test_budgets_of_this_machine(budget: str) -> None:
    _, record = step(nn.Linear(8, 8), rows(8), memory_budget=budget)
    assert report_of(record).budget > report_of(record).peak


def test_the_option_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCOMPILE_MEMORY_BUDGET", "5 KB")
    with pytest.raises(MemoryBudgetError) as refused:
        step(nn.Linear(64, 64), rows())
    assert refused.value.budget == 5000


def test_the_state_of_the_optimizer_counts() -> None:
    module, x = blocks(2), rows()
    trained = sum(parameter.numel() for parameter in module.parameters())
    found = {}
    for given in (None, 0, "1MiB"):
        options = {} if given is None else {"optimizer_bytes": given}
        report = report_of(step(module, x, memory_budget="64GiB", **options)[1])
        assert report.assumed_optimizer == (given is None)
        assert report.pinned.parameters == 4 * (trained + x.numel())
        assert report.pinned.total == report.pinned.parameters + report.pinned.optimizer
        found[given] = report
    assert [report.pinned.optimizer for report in found.values()] == [8 * trained, 0, 1 << 20]
    assert found[None].peak - found[0].peak == 8 * trained
    assert smallest(module, x, optimizer_bytes=0) == smallest(module, x) - 8 * trained


@pytest.mark.slow
def test_frozen_parameters_have_no_optimizer_state() -> None:
    module, x = blocks(), rows()
    for number, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    report = check_smallest_budget(module, x)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert report.pinned.optimizer == 8 * trained


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode])
def test_inference_needs_no_plan(no_grad: Callable[[], Any]) -> None:
    module, x = blocks(2), rows()
    compiled = torch.compile(module, backend="deepep", options={"memory_budget": "1GiB"})
    with no_grad(), recording() as record:
        torch.testing.assert_close(compiled(x), module(x))
    assert [graph.kind for graph in record.graphs] == ["inference"]
    assert not record.budgets


@pytest.mark.slow
def test_parameters_of_bf16() -> None:
    # Kernels that compute a value again do not round it on the way, as storing it would have.
    module, x = blocks().bfloat16(), rows().bfloat16()
    report = check_smallest_budget(module, x, tolerance=1e-2)
    trained = sum(parameter.numel() for parameter in module.parameters())
    assert report.pinned.optimizer == 8 * trained


@pytest.mark.slow
def test_dropout_by_counters() -> None:
    assert check_smallest_budget(blocks(drop=0.3), rows()).planned is not None


@pytest.mark.slow
def test_dropout_of_torch_in_groups_of_layers() -> None:
    """A group computes what one layer hands to the next again, but no mask."""
    report = check_smallest_budget(blocks(6, drop=0.3), rows(), rng="eager")
    assert any(part.end - part.start > 1 for part in report.planned.parts)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(128, 64), blocks()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.embedding(tokens)) @ self.embedding.weight.T


class Moving(nn.Module):
    """Buffers that forward reads before and after it has written them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("seen", torch.zeros(256, 64))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = torch.tanh(layer(x) * self.mean.exp())
            x = x + nn.functional.gelu(hidden * self.seen.cos())
            self.mean.mul_(0.9).add_(x.detach().mean(0) * 0.1)
            self.seen.add_(x.detach())
        return x


class Scaled(torch.autograd.Function):
    """Noise of one product meets the result of another in a term of backward alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        noise = torch.rand_like(x)
        hidden = torch.tanh((x * noise) @ first)
        result = hidden @ second
        ctx.save_for_backward(noise, hidden, result, first, second)
        return result.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        noise, hidden, result, first, second = ctx.saved_tensors
        inner = (grad @ second.T) * (1 - hidden * hidden)
        return (inner @ first.T) * (noise * result), hidden.T @ inner, hidden.T @ grad


class WithFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(64, 64) / 8) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.weights[::2], self.weights[1::2], strict=True):
            x = x + Scaled.apply(x, first, second)
        return x


@pytest.mark.slow
def test_tied_embeddings() -> None:
    check_smallest_budget(Tied(), torch.randint(128, (4, 64)))


@pytest.mark.slow
def test_buffers_that_forward_overwrites() -> None:
    check_smallest_budget(Moving(), rows())


@pytest.mark.slow
@pytest.mark.parametrize("rng", ["philox", "eager"])
def test_a_function_with_a_gradient_of_its_own(rng: str) -> None:
    check_smallest_budget(WithFunction(), rows(), rng=rng)


def test_the_error_reaches_the_user_without_strict() -> None:
    compiled = torch.compile(blocks(2), backend="deepep", options={"memory_budget": "1KiB"})
    with pytest.raises(DeepCompileError, match="memory_budget = 1 KiB"):
        compiled(rows())


@pytest.mark.slow
def test_reports_as_events() -> None:
    module, x = blocks(), rows()
    budget = smallest(module, x)
    _, record = step(module, x, memory_budget=budget)
    ((_, facts),) = [found for found in record.events if found[0] == "memory-budget"]
    report = report_of(record)
    assert facts == report.facts()
    assert facts["budget"] == budget
    assert facts["peak"] == report.peak <= budget < facts["unplanned_peak"]
    assert facts["recompute_seconds"] >= facts["bound_seconds"] > 0
    kept = {decision.tensor for decision in report.decisions if decision.decision == "keep"}
    assert kept == {node.name for node in report.planned.saved}


@pytest.mark.parametrize("scipy", [True, False])
def test_the_report_tells_a_missing_solver(scipy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not scipy:
        monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    module, x = blocks(2), rows()
    _, record = step(module, x, memory_budget=smallest(module, x))
    facts = report_of(record).facts()
    assert facts["unsolved"] == ([] if scipy else ["no SciPy"])
    assert (facts["bound_seconds"] is None) == (not scipy)
