"""Programs of Triton kernels that take and let go of memory as they run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepcompile.backend
from deepcompile.backend import recording
from deepcompile.codegen import lifetimes
from deepcompile.codegen.steps import LifetimeStep
from deepcompile.codegen.timeline import timeline
from deepcompile.runtime.triton_program import TritonRunner
from tests.runtime.recording_driver import RecordingDriver
from tests.runtime.tracked import course_of_bytes

pytest.importorskip("triton")

OPTIONS = {"codegen": "triton", "cuda_graphs": False}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    made = RecordingDriver()
    monkeypatch.setattr(deepcompile.backend, "driver_of", lambda device: made)
    monkeypatch.setattr(deepcompile.backend._Compiler, "follow_lifetimes", True)
    monkeypatch.setattr(lifetimes, "LARGE", 1)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="deepep", options=OPTIONS | options)


def changes(record: Any) -> list[LifetimeStep]:
    steps = [step for graph in record.graphs for step in graph.spec.steps]
    return [step for step in steps if isinstance(step, LifetimeStep)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(torch.softmax(x @ x, -1) @ x, -1) @ x,
        lambda x: (torch.sort(x.sin())[0] * 2, x, x[1:]),
        lambda x: (y := x.exp(), y.T, (y + 1).view(torch.int32)),
        lambda x: (x.add_(1) * 2, x.sum()),
        lambda x: x[torch.tensor([2, 0])] * 2,
    ],
)
def test_results_are_those_of_eager(
    driver: RecordingDriver, function: Callable[[Tensor], Any]
) -> None:
    run = compiled(function)
    with recording() as record:
        for _ in range(3):
            x = torch.randn(4, 4)
            mine = x.clone()
            torch.testing.assert_close(run(mine), function(x))
            torch.testing.assert_close(mine, x)
    assert changes(record)
    assert record.graphs[0].fallback is None


def test_training_is_that_of_eager(driver: RecordingDriver) -> None:
    def train(compile_it: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        run = compiled(model) if compile_it else model
        step = compiled(optimizer.step) if compile_it else optimizer.step
        for _ in range(2):
            optimizer.zero_grad()
            run(torch.randn(5, 4)).square().mean().backward()
            step()
        return list(model.state_dict().values())

    with recording() as record:
        got = train(True)
    assert changes(record)
    torch.testing.assert_close(got, train(False), rtol=1e-4, atol=1e-5)


def test_a_program_is_not_captured(driver: RecordingDriver) -> None:
    function = compiled(lambda x: x.sin().cumsum(0) * 2, cuda_graphs=True)
    x = torch.randn(4, 8)
    with recording() as record:
        for _ in range(5):
            torch.testing.assert_close(function(x), x.sin().cumsum(0) * 2)
    reasons = [f["reason"] for event, f in record.events if event == "device-graph-refused"]
    assert len(reasons) == 1
    assert "lets go of memory" in reasons[0]
    assert "capture" not in driver.log


def test_memory_follows_the_timeline(
    driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of calls, as the allocator sees them; launches of the interpreter allocate on their own."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.mm(torch.mm(torch.mm(x, w), w), w).cumsum(0)

    x, w = torch.randn(64, 32), torch.randn(32, 32)
    runner = _runner_of(lambda: compiled(function)(x, w), monkeypatch)
    found = timeline(runner.spec, {})
    assert "transient" in {span.role for span in found.spans}
    course = course_of_bytes(runner, lambda: [x.clone(), w.clone()])
    assert max(course) == found.peak - found.live(-1)


def test_an_input_dies_while_the_program_runs(
    driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    held: list[weakref.ref[Tensor]] = []

    @torch.library.custom_op("lifetimetest::see", mutates_args=())
    def see(x: Tensor) -> Tensor:
        seen.append(bool(held) and held[-1]() is not None)
        return x.clone()

    @see.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    runner = _runner_of(
        lambda: compiled(lambda x: see(see(x).sin() * 2))(torch.randn(16)), monkeypatch
    )
    args = [torch.randn(16)]
    held.append(weakref.ref(args[0]))
    seen.clear()
    runner(args)
    assert seen == [True, False]


def _runner_of(run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> TritonRunner:
    made: list[TritonRunner] = []
    call = TritonRunner.__call__

    def see(self: TritonRunner, args: list[Any]) -> list[Any]:
        made.append(self)
        return call(self, args)

    with monkeypatch.context() as patch:
        patch.setattr(TritonRunner, "__call__", see)
        run()
    (runner,) = made
    return runner
