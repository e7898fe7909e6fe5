"""Programs of Triton kernels on a driver that keeps what it is asked for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import deepcompile.backend
from deepcompile.backend import recording
from deepcompile.errors import CompileError
from deepcompile.runtime.triton_program import TritonRunner
from tests.runtime.recording_driver import RecordingDriver

pytest.importorskip("triton")

OPTIONS = {"codegen": "triton"}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    made = RecordingDriver()
    monkeypatch.setattr(deepcompile.backend, "driver_of", lambda device: made)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="deepep", options=OPTIONS | options)


def loads(driver: RecordingDriver) -> list[str]:
    return [line for line in driver.log if line.startswith("load")]


def test_unaligned_inputs_run_the_general_code_made_when_needed(driver: RecordingDriver) -> None:
    function = compiled(lambda x: x.sin() * 2)
    aligned, stray = torch.randn(64), torch.randn(65)[1:]
    for x in (aligned, stray, stray, aligned):
        torch.testing.assert_close(function(x), x.sin() * 2)
        if x is aligned:
            continue
        assert loads(driver) == ["load kernel b0,b1", "load kernel "]


def test_kernels_are_compiled_before_the_first_call(
    driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []
    call = TritonRunner.__call__

    def see(self: TritonRunner, args: list[Any]) -> list[Any]:
        loaded.append(loads(driver))
        return call(self, args)

    monkeypatch.setattr(TritonRunner, "__call__", see)
    compiled(lambda x: x.sin() * 2)(torch.randn(64))
    assert loaded == [["load kernel b0,b1"]]


def test_a_kernel_that_spills_gets_a_leaner_schedule(driver: RecordingDriver) -> None:
    driver.spills = lambda function: 0 if function.warps == 8 else 64
    x = torch.randn(2, 8000)
    with recording() as record:
        result = compiled(lambda x: torch.softmax(x, -1))(x)
    torch.testing.assert_close(result, torch.softmax(x, -1))
    (spilled,) = [fields for event, fields in record.events if event == "spilled"]
    assert spilled["left"] == 0
    assert len(loads(driver)) > 1


def refuse(*_: Any) -> Any:
    raise RuntimeError("out of shared memory")


def test_a_refused_kernel_runs_as_aten_alone(
    driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordingDriver, "load", refuse)
    x, w = torch.randn(4, 8), torch.randn(8, 8)

    def function(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x @ w) + 1
        return y.sum(0), torch.softmax(y @ w, -1)

    with recording() as record:
        for _ in range(2):
            torch.testing.assert_close(compiled(function)(x, w), function(x, w))
    reasons = [fields["reason"] for event, fields in record.events if event == "fallback"]
    assert all("out of shared memory" in reason for reason in reasons)
    assert reasons


def test_in_strict_mode_a_refused_kernel_is_an_error_with_the_line(
    driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordingDriver, "load", refuse)
    with pytest.raises(CompileError, match=r"out of shared memory(.|\n)*test_launch.py"):
        compiled(lambda x: x.sin() * 2, strict=True)(torch.randn(64))


def test_an_error_of_a_launch_reaches_the_user(
    driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, x = compiled(lambda x: x.sin() * 2), torch.randn(64)
    function(x)

    def fail(self: Any, *_: Any) -> None:
        raise ValueError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(RecordingDriver, "run", fail)
        with pytest.raises(ValueError, match="device is gone"):
            function(x)
    torch.testing.assert_close(function(x), x.sin() * 2)


def test_an_index_out_of_range_is_an_error_with_the_line(driver: RecordingDriver) -> None:
    table, function = torch.randn(5, 8), compiled(lambda t, i: t[i] * 2)
    torch.testing.assert_close(function(table, torch.tensor([4, 0])), table[[4, 0]] * 2)
    with pytest.raises(IndexError, match=r"test_launch\.py"):
        function(table, torch.tensor([5, 0]))
    torch.testing.assert_close(function(table, torch.tensor([1, 2])), table[[1, 2]] * 2)


def test_a_program_drops_inputs_it_needs_no_more(driver: RecordingDriver) -> None:
    seen: list[bool] = []
    held: list[weakref.ref[Tensor]] = []

    @torch.library.custom_op("launchtest::look", mutates_args=())
    def look(x: Tensor) -> Tensor:
        seen.append(bool(held) and held[-1]() is not None)
        return x.clone()

    @look.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    with recording() as record:
        function = compiled(lambda x: look(look(x.sin() * 2)))
        function(torch.randn(16))
    runner = _runner_of(record)
    args = [torch.randn(16)]
    held.append(weakref.ref(args[0]))
    seen.clear()
    runner(args)
    assert seen == [True, False]


def _runner_of(record: Any) -> Any:
    import gc

    (found,) = [
        thing
        for thing in gc.get_objects()
        if type(thing) is TritonRunner and thing.spec is record.graphs[-1].spec
    ]
    return found


def test_two_threads_at_once_give_right_results(driver: RecordingDriver) -> None:
    def chain(x: Tensor, w: Tensor) -> Tensor:
        return torch.softmax(torch.softmax(x @ w, -1) @ w, -1) @ w

    function, w = compiled(chain), torch.randn(8, 8)
    function(torch.randn(4, 8), w)
    wrong: list[float] = []

    def work(seed: int) -> None:
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        for _ in range(10):
            error = (function(x, w) - chain(x, w)).abs().max().item()
            if error > 1e-5:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
