"""Schedules by measurement, on a driver that answers with times of our choice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deepcompile.backend
from deepcompile.backend import Recording, recording
from deepcompile.codegen.triton_schedule import candidates
from deepcompile.runtime import triton_tuning
from tests.runtime.recording_driver import RecordingDriver

pytest.importorskip("triton")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    made = RecordingDriver()
    monkeypatch.setattr(deepcompile.backend, "driver_of", lambda device: made)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def run(folder: Path, x: Tensor, **options: Any) -> Recording:
    torch._dynamo.reset()
    given = {"codegen": "triton", "tune": "measure", "cache_dir": str(folder)} | options
    with recording() as record:
        result = torch.compile(softmax, backend="deepep", options=given)(x)
    torch.testing.assert_close(result, softmax(x))
    return record


def events(record: Recording, name: str) -> list[dict[str, Any]]:
    return [fields for event, fields in record.events if event == name]


def test_the_fastest_candidate_is_taken_and_remembered(
    driver: RecordingDriver, tmp_path: Path
) -> None:
    x = torch.randn(6, 300)
    driver.times = [3.0, 2.0, 1.0, 2.5, 4.0, 5.0, 6.0, 7.0]
    (tuned,) = events(run(tmp_path, x), "tuned")
    assert tuned["seconds"] == 1.0
    assert tuned["by_rule"] == 3.0
    assert driver.log.count("time") == tuned["candidates"]
    loads = driver.log.count("time")
    assert not events(run(tmp_path, x), "tuned")
    assert driver.log.count("time") == loads


def test_a_gain_within_noise_leaves_the_rule(driver: RecordingDriver, tmp_path: Path) -> None:
    driver.times = [1.0, 0.99, 0.98, 0.99, 1.0, 1.0, 1.0, 1.0]
    (tuned,) = events(run(tmp_path, torch.randn(6, 300)), "tuned")
    assert tuned["seconds"] == tuned["by_rule"] == 1.0


def test_candidates_that_spill_are_not_timed(driver: RecordingDriver, tmp_path: Path) -> None:
    driver.times = [1.0] * 8
    driver.spills = lambda function: 8 if function.warps != 1 else 0
    (tuned,) = events(run(tmp_path, torch.randn(6, 300)), "tuned")
    assert tuned["candidates"] < 3


def test_one_that_the_device_refuses_leaves_the_others(
    driver: RecordingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = RecordingDriver.load

    def refuse(self: RecordingDriver, module: Any, function: Any, divisible: Any) -> Any:
        if function.warps == 2:
            raise RuntimeError("out of shared memory")
        return load(self, module, function, divisible)

    monkeypatch.setattr(RecordingDriver, "load", refuse)
    driver.times = [1.0] * 8
    record = run(tmp_path, torch.randn(6, 300))
    assert events(record, "tuned")
    assert events(record, "candidate-refused")
    assert not events(record, "fallback")


def test_a_damaged_entry_is_measured_again(driver: RecordingDriver, tmp_path: Path) -> None:
    x = torch.randn(6, 300)
    driver.times = [1.0] * 8
    run(tmp_path, x)
    (entry,) = tmp_path.rglob("tuned/*.json")
    entry.write_text('{"x_block": ')
    driver.times = [1.0] * 8
    assert events(run(tmp_path, x), "tuned")


@pytest.mark.parametrize("option", [{"deterministic": True}, {"tune": "off"}])
def test_nothing_is_timed_where_bits_must_repeat_or_nobody_asked(
    driver: RecordingDriver, tmp_path: Path, option: dict[str, Any]
) -> None:
    run(tmp_path, torch.randn(6, 300), **option)
    assert "time" not in driver.log


def test_where_time_means_nothing_the_rule_stands(tmp_path: Path) -> None:
    record = run(tmp_path, torch.randn(6, 300))
    (impossible,) = events(record, "tuning-impossible")
    assert "interpreter" in impossible["reason"]


def test_candidates_differ_and_begin_with_the_rule(driver: RecordingDriver, tmp_path: Path) -> None:
    driver.times = [1.0] * 8
    record = run(tmp_path, torch.randn(6, 300))
    (graph,) = record.graphs
    (op,) = graph.kernels
    from deepcompile.codegen.triton_schedule import plan_triton

    schedule = plan_triton(op.nest)
    found = candidates(op.nest, schedule)
    assert found[0] == schedule
    assert len(set(found)) == len(found) > 2


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.gelu(torch.nn.functional.linear(x, w, b)) * 2


def run_linear(driver: RecordingDriver, folder: Path, times: list[float]) -> Recording:
    torch._dynamo.reset()
    driver.times = times
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(s, generator=generator) for s in ((48, 40), (56, 40), (56,))]
    halves = [tensor.to(torch.bfloat16) for tensor in given]
    options = {"codegen": "triton", "tune": "measure", "cache_dir": str(folder)}
    with recording() as record:
        function = torch.compile(linear, backend="deepep", options=options)
        for _ in range(2):
            result = function(*halves)
    wanted = linear(*(tensor.float() for tensor in halves))
    torch.testing.assert_close(result.float(), wanted, rtol=3e-2, atol=3e-2)
    return record


def test_a_product_takes_its_epilogue_along_where_that_is_faster(
    driver: RecordingDriver, tmp_path: Path
) -> None:
    record = run_linear(driver, tmp_path, [3.0, 1.0])
    (tuned,) = events(record, "tuned")
    assert tuned["by_rule"] == 3.0
    assert tuned["seconds"] == 1.0
    assert "columns" in tuned["schedule"]
    driver.launches.clear()
    run_linear(driver, tmp_path, [])
    assert driver.launches == ["kernel", "kernel"]


def test_else_the_library_keeps_it(driver: RecordingDriver, tmp_path: Path) -> None:
    record = run_linear(driver, tmp_path, [1.0] * 20)
    product, epilogue = events(record, "tuned")
    assert product["schedule"] == {"library": True}
    assert "x_block" in epilogue["schedule"]
    driver.log.clear()
    assert not events(run_linear(driver, tmp_path, []), "tuned")
    assert "time" not in driver.log


@pytest.mark.parametrize("in_place", ["left", "right"])
def test_a_product_whose_operand_is_overwritten_keeps_to_itself(
    driver: RecordingDriver, tmp_path: Path, in_place: str
) -> None:
    def update(x: Tensor, w: Tensor) -> None:
        (x if in_place == "left" else w).copy_(torch.relu(x @ w))

    x, w = torch.randn(64, 64).to(torch.bfloat16), torch.randn(64, 64).to(torch.bfloat16)
    wanted = torch.relu(x @ w)
    driver.times = [9.0, *[1.0] * 9]
    torch._dynamo.reset()
    options = {"codegen": "triton", "tune": "measure", "cache_dir": str(tmp_path)}
    with torch.no_grad():
        torch.compile(update, backend="deepep", options=options)(x, w)
    torch.testing.assert_close(x if in_place == "left" else w, wanted)


def test_a_remembered_choice_that_the_device_refuses_now_is_left(
    driver: RecordingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_linear(driver, tmp_path, [3.0, 1.0])
    load = RecordingDriver.load

    def refuse(self: RecordingDriver, module: Any, function: Any, divisible: Any) -> Any:
        if function.grid == "product":
            raise RuntimeError("out of shared memory")
        return load(self, module, function, divisible)

    monkeypatch.setattr(RecordingDriver, "load", refuse)
    record = run_linear(driver, tmp_path, [1.0] * 20)
    assert events(record, "candidate-refused")
    assert not events(record, "fallback")


def test_where_memory_is_short_the_rule_stands(
    driver: RecordingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(triton_tuning, "Bench", full)
    record = run(tmp_path, torch.randn(6, 300))
    assert events(record, "tuning-impossible")
    assert not events(record, "fallback")
