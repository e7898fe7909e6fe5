"""Copies to and from the host that run beside work, planned as for a GPU and run on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompile import explain
from deepcompile.budget.report import BudgetReport
from deepcompile.budget.split import BudgetedSplit
from deepcompile.budget.step import StepTimeline
from deepcompile.capture import offload
from deepcompile.capture.offload import OFFLOAD_WAIT, RELOAD_START, RELOAD_WAIT, SameMemory
from deepcompile.codegen.steps import ExternStep, KernelStep, LifetimeStep, ProgramSpec, touched
from deepcompile.codegen.timeline import SCRATCH, Span
from deepcompile.cost.rates import rates_of_cpu
from deepcompile.recording import Recording, recording
from deepcompile.runtime import measured_rates
from tests.backend.test_memory_forms import Residual


class Late(SameMemory):
    """Copies that are done at the last moment: when they are waited for.

    What reads a tensor before that sees NaN, and so does what uses memory of a tensor that is still
    to be copied.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[Tensor, Tensor]] = {}
        self.waits = 0

    def offload_start(self, tensor: Tensor) -> Tensor:
        made = torch.full_like(tensor, float("nan"))
        self.waiting[made.data_ptr()] = made, tensor
        return made

    reload_start = offload_start

    def offload_wait(self, host: Tensor) -> None:
        made, source = self.waiting.pop(host.data_ptr())
        assert bool(made.isnan().all()), "it has been written to"
        made.copy_(source)
        self.waits += 1

    reload_wait = offload_wait


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that copies beside its work, a layer's tensors in about the time of a layer."""
    found = replace(rates_of_cpu(1), overlaps=True, link=2e9)
    monkeypatch.setattr(measured_rates, "table_of", lambda device: found)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    made = Late()
    monkeypatch.setattr(offload, "link", lambda device: made)
    yield made
    assert not made.waiting


def train(
    model: nn.Module, x: Tensor, runs: int = 1, dynamic: bool = False, **options: Any
) -> tuple[list[Tensor], Recording]:
    """Loss and gradients of a step; backward runs several times over one forward."""
    torch._dynamo.reset()
    model = copy.deepcopy(model)
    given = {"strict": True, "deterministic": True, **options}
    with recording() as record:
        step = torch.compile(
            model, backend="deepep", fullgraph=True, options=given, dynamic=dynamic
        )
        loss = step(x)
        for number in range(runs):
            for parameter in model.parameters():
                parameter.grad = None
            loss.backward(retain_graph=number + 1 < runs)
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)], record


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual(layers=3)


@pytest.fixture(scope="module")
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(512, 64)


def tight(model: nn.Module, x: Tensor, share: float = 0.38, **options: Any) -> int:
    """A budget for which a step cannot keep everything."""
    _, record = train(model, x, memory_budget=1 << 40, **options)
    report = record.budgets[0]
    return report.pinned.total + int(share * (report.unplanned - report.pinned.total))


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether tensors are the same to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def backward_of(record: Recording) -> ProgramSpec:
    """The program that copies tensors back."""
    (found,) = (
        graph.spec
        for graph in record.graphs
        if graph.spec and any(_calls(step, RELOAD_START) for step in graph.spec.steps)
    )
    return found


def _calls(step: Any, target: Any) -> bool:
    return isinstance(step, ExternStep) and step.target is target


def copies(spec: ProgramSpec) -> list[tuple[int, int, int]]:
    """For each copy back: the slot, and the steps that start it and wait for it."""
    found = []
    for at, step in enumerate(spec.steps):
        if isinstance(step, ExternStep) and step.target is RELOAD_START:
            (slot,) = step.results
            assert slot is not None
            (wait,) = (
                number
                for number, other in enumerate(spec.steps)
                if isinstance(other, ExternStep)
                and other.target is RELOAD_WAIT
                and other.args[0].slot == slot
            )
            found.append((slot, at, wait))
    return found


def rows(report: BudgetReport) -> list[Any]:
    """Of what is on the host."""
    return [row for row in report.decisions if row.decision == "offload"]


@pytest.mark.slow
def test_copies_that_are_done_late_give_the_same_bits(
    model: nn.Module, x: Tensor, late: Late
) -> None:
    expected, _ = train(model, x)
    budget = tight(model, x)
    found, record = train(model, x, memory_budget=budget, offload="on")
    assert same(found, expected)
    assert late.waits == 2 * len(rows(record.budgets[0])) > 0
    assert record.budgets[0].peak <= budget


def test_nothing_touches_a_buffer_between_start_and_wait(model: nn.Module, x: Tensor) -> None:
    _, record = train(model, x, memory_budget=tight(model, x), offload="on")
    spec = backward_of(record)
    found = copies(spec)
    assert found
    assert max(wait - start for _, start, wait in found) > 3
    for slot, start, wait in found:
        assert spec.slots[slot].storage == "extern"  # memory of its own, no block of the arena
        for step in spec.steps[start + 1 : wait]:
            assert slot not in touched(step)
            if isinstance(step, LifetimeStep):
                assert slot not in step.release
    kernels = [step for step in spec.steps if isinstance(step, KernelStep)]
    restored = {slot for slot, _, _ in found} | {
        s.number for s in spec.slots if s.view_of in {slot for slot, _, _ in found}
    }
    for kernel in kernels:
        for buffer, slot in zip(kernel.op.nest.buffers, kernel.slots, strict=True):
            assert buffer.role == "in" or slot not in restored


@pytest.mark.slow
def test_the_simulation_counts_a_tensor_from_the_start_of_its_copy(
    model: nn.Module, x: Tensor
) -> None:
    _, record = train(model, x, memory_budget=tight(model, x), offload="on")
    (report,) = record.budgets
    assert report.step is not None
    assert report.step.undelayed is not None
    spec = backward_of(record)
    spans = {span.slot: span for span in report.step.backward.spans}
    undelayed = {span.slot: span for span in report.step.undelayed.backward.spans}
    for slot, start, wait in copies(spec):
        assert spans[slot].first == start
        assert undelayed[slot].first == wait
    assert report.step.undelayed.peak <= report.step.peak
    # Forward lets go of a tensor behind the wait for its copy.
    forward = next(
        graph.spec
        for graph in record.graphs
        if graph.spec and any(_calls(step, OFFLOAD_WAIT) for step in graph.spec.steps)
    )
    ends = {span.slot: span.last for span in report.step.forward.spans}
    for at, step in enumerate(forward.steps):
        if isinstance(step, ExternStep) and step.target is OFFLOAD_WAIT:
            assert ends.get(step.args[1].slot, at) >= at


@pytest.mark.slow
def test_backward_may_run_more_than_once(model: nn.Module, x: Tensor, late: Late) -> None:
    expected, _ = train(model, x, runs=2)
    found, _ = train(model, x, runs=2, memory_budget=tight(model, x), offload="on")
    assert same(found, expected)
    assert late.waits


@pytest.mark.slow
def test_symbolic_sizes(model: nn.Module, x: Tensor, late: Late) -> None:
    expected, _ = train(model, x, dynamic=True)
    budget = tight(model, x, dynamic=True)
    found, record = train(model, x, dynamic=True, memory_budget=budget, offload="on")
    assert same(found, expected)
    assert late.waits
    assert any(graph.spec.sizes for graph in record.graphs if graph.spec)


@pytest.mark.slow
def test_kernels_in_triton(late: Late) -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    model, x = Residual(layers=3, width=16), torch.randn(1024, 16)
    expected, _ = train(model, x, codegen="triton")
    budget = tight(model, x, share=0.5, codegen="triton")
    found, record = train(model, x, codegen="triton", memory_budget=budget, offload="on")
    assert same(found, expected)
    assert late.waits
    assert max(wait - start for _, start, wait in copies(backward_of(record))) > 1


@pytest.mark.slow
def test_decisions_say_how_far_ahead_and_what_is_exposed(model: nn.Module, x: Tensor) -> None:
    _, record = train(model, x, memory_budget=tight(model, x), offload="on")
    (report,) = record.budgets
    found = rows(report)
    assert any(row.ahead > 3 for row in found)
    assert all(row.exposed >= 0 for row in found)
    assert report.facts()["exposed_seconds"] == sum(row.exposed for row in found)
    assert report.planned is not None
    for row in report.decisions:
        if row.decision != "offload":
            assert row.ahead == row.exposed == 0


@pytest.mark.slow
def test_explain_prints_it(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = tight(model, x)
    torch._dynamo.reset()
    monkeypatch.setenv("DEEPCOMPILE_MEMORY_BUDGET", str(budget))
    monkeypatch.setenv("DEEPCOMPILE_OFFLOAD", "on")
    shown = explain(copy.deepcopy(model), x).details()
    assert "offload (back " in shown
    assert "that no work hides" in shown


@pytest.mark.slow
def test_a_slower_link_makes_slower_plans(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = tight(model, x)
    seconds = []
    for link in (1e8, 2e9, 1e12):
        found = replace(rates_of_cpu(1), overlaps=True, link=link)
        monkeypatch.setattr(measured_rates, "table_of", lambda device, found=found: found)
        _, record = train(model, x, memory_budget=budget, offload="on")
        plan = record.budgets[0].planned
        assert plan is not None
        seconds.append(plan.combination.seconds)
    # The ladders of sizes differ, so a plan may be made for a size that is a rung smaller.
    assert seconds[0] * 1.1 > seconds[1] > seconds[2] / 1.1
    assert seconds[0] > 2 * seconds[2]


@pytest.mark.slow
def test_copies_start_at_once_where_programs_have_no_room_for_them_earlier(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every program held much more than was thought as soon as it copies ahead."""
    budget = tight(model, x)
    simulate = BudgetedSplit.simulate
    tried = []

    def strict(self: BudgetedSplit, halves: Any, *given: Any) -> StepTimeline:
        step = simulate(self, halves, *given)
        starts = halves[1].graph.find_nodes(op="call_function", target=RELOAD_START)
        ahead = any(start.next not in start.users for start in starts)
        tried.append(ahead)
        if not ahead:
            return step
        more = Span(SCRATCH, "scratch", 1 << 30, 0, 0)
        backward = replace(step.backward, spans=(*step.backward.spans, more))
        return replace(step, backward=backward)

    monkeypatch.setattr(BudgetedSplit, "simulate", strict)
    _, record = train(model, x, memory_budget=budget, offload="on")
    (report,) = record.budgets
    assert any(tried)
    assert report.peak <= budget
    assert report.planned is not None
    back = [copy for copy in report.planned.transfers if copy.wait.target is RELOAD_WAIT]
    assert all(copy.distance == 0 for copy in back)
