"""Measuring rates: what is divided by what, with a clock that only pretends."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
import torch

from deepcompile.cost.calibration import load_measured, save_measured
from deepcompile.runtime import measured_rates
from deepcompile.runtime.measured_rates import Amounts, machine_of, measure_rates

CPU = torch.device("cpu")
SMALL = Amounts(products=(2, 4, 8), copied=1000)


def ticking(step: float) -> Callable[[], float]:
    """A clock of which each look is `step` seconds after the one before."""
    ticks = itertools.count()
    return lambda: next(ticks) * step


def test_rates_are_amounts_by_seconds() -> None:
    found = measure_rates(CPU, SMALL, ticking(0.25))
    assert found.machine == machine_of(CPU)
    assert found.bandwidth == 2 * 1000 / 0.25
    assert found.launch == 0.25
    assert found.flops == {"f32": 2 * 4**3 / 0.25, "bf16": 2 * 4**3 / 0.25}
    assert found.link == {}


def test_short_work_is_called_more_often() -> None:
    step = measured_rates.SHORTEST / 3
    found = measure_rates(CPU, SMALL, ticking(step))
    # However often work is called, the clock says one step: rounds end at the most calls.
    assert found.launch == pytest.approx(step / measured_rates.MOST_CALLS, rel=1e-3)


def test_rounds_end_at_the_limit() -> None:
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return looks * measured_rates.LIMIT

    measure_rates(CPU, SMALL, clock)
    measurements = 2 + 2 * len(SMALL.products)
    # One call to warm up, one to see how long it takes, and one round.
    assert looks == 2 * 3 * measurements


def test_on_this_machine(tmp_path) -> None:
    start = time.perf_counter()
    found = measure_rates(CPU, Amounts((64,), 1 << 20))
    assert time.perf_counter() - start < 10
    assert 1e6 < found.flops["f32"] < 1e15
    assert 1e7 < found.bandwidth < 1e14
    assert 1e-9 < found.launch < 1e-3
    save_measured(tmp_path / "rates.json", [found])
    assert load_measured(tmp_path / "rates.json") == (found,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    found = measure_rates(torch.device("cuda"), Amounts((1024,), 16 << 20))
    assert found.machine.threads == 0
    assert found.flops["bf16"] > found.flops["f32"] > 1e11
    assert set(found.link) == {"to_device", "to_host"}
    assert found.bandwidth > max(found.link.values()) > 1e8
