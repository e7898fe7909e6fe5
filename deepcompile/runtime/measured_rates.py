"""Measuring how fast a device computes and moves bytes, in a few seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from ..cache_dir import rates_file
from ..codegen.gemm import onednn_available
from ..cost.calibration import Machine, Measured, rates_measured
from ..cost.gemm import default_gemm_choice
from ..cost.processor import processor_name
from ..cost.rates import Rates, rates_of
from ..options import Options
from .device import gpu_of

ROUNDS = 5
LIMIT = 0.5
"""Seconds for all rounds of one measurement; one round is always run."""
SHORTEST = 2e-3
"""Seconds that a round takes at least: what is shorter is called several times."""
MOST_CALLS = 1 << 14

Clock = Callable[[], float]


@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    Attributes:
        products: rows, and columns, of the square matrices that are multiplied.
        copied: bytes of a copy within the device's memory, and of one to or from the host.
    """

    products: tuple[int, ...]
    copied: int


CPU = Amounts((256, 512, 1024), 128 << 20)
GPU = Amounts((1024, 2048, 4096, 8192), 512 << 20)


def machine_of(device: torch.device) -> Machine:
    """What rates measured now, or looked up now, are for."""
    if device.type == "cuda":
        return Machine(torch.cuda.get_device_name(device), 0, torch.__version__)
    return Machine(processor_name(), torch.get_num_threads(), torch.__version__)


def table_of(device: torch.device) -> Rates:
    """The rates that the tables have for a device."""
    return rates_of(device.type, gpu_of(device).capability, torch.get_num_threads())


def rates_for(options: Options, device: torch.device) -> Rates:
    """What was measured on this machine, if it was and the options do not say otherwise."""
    table = table_of(device)
    if options.rates == "table":
        return table
    return rates_measured(table, machine_of(device), rates_file(options))


def measure_rates(
    device: torch.device, amounts: Amounts | None = None, clock: Clock = time.perf_counter
) -> Measured:
    """Matrix products in f32 and bf16, a large copy, a call, and on a GPU the link to the host.

    Each is the median of several rounds; matrix products are the median of several sizes. They run
    with torch's settings of the moment (TF32, threads).
    """
    amounts = amounts or (GPU if device.type == "cuda" else CPU)
    seconds = partial(_seconds, wait=_wait(device), clock=clock)

    def product(dtype: torch.dtype) -> float:
        found = []
        for size in amounts.products:
            # Ones would be quicker: a GPU draws less power for them, and so need not slow down.
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            found.append(2 * size**3 / seconds(_product(left, right)))
        return _short(statistics.median(found))

    def copy(target: torch.Tensor, source: torch.Tensor) -> float:
        taken = seconds(partial(target.copy_, source, non_blocking=True))
        return _short(amounts.copied / taken)

    source = torch.ones(amounts.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    link = {}
    if device.type == "cuda":
        pinned = torch.ones(amounts.copied, dtype=torch.uint8, pin_memory=True)
        link = {"to_device": copy(target, pinned), "to_host": copy(pinned, source)}
    number = torch.zeros(1, device=device)
    return Measured(
        machine_of(device),
        datetime.now(UTC).date().isoformat(),
        2 * copy(target, source),
        _short(seconds(partial(number.add_, 1))),
        {"f32": product(torch.float32), "bf16": product(torch.bfloat16)},
        link,
    )


def _product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    """A product of square matrices by the library that programs would ask."""
    ours = left.dtype == torch.float32 and left.device.type == "cpu" and onednn_available()
    rows, depth = left.shape
    if ours and default_gemm_choice().prefers_onednn(rows, right.shape[1], depth):
        linear = torch.ops.mkldnn._linear_pointwise
        return partial(linear, left, right, None, "none", [], "")
    return partial(torch.mm, left, right, out=torch.empty_like(left))


def _seconds(work: Callable[[], object], wait: Callable[[], None], clock: Clock) -> float:
    """Of one call: the median of rounds, after calls that count how many make a round."""

    def timed(calls: int) -> float:
        start = clock()
        for _ in range(calls):
            work()
        wait()
        return clock() - start

    timed(1)
    calls = 1
    while timed(calls) < SHORTEST and calls < MOST_CALLS:
        calls *= 2
    found: list[float] = []
    while not found or (len(found) < ROUNDS and sum(found) < LIMIT):
        found.append(timed(calls))
    return statistics.median(found) / calls


def _wait(device: torch.device) -> Callable[[], None]:
    """What returns when the device has done all that it was given."""
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return lambda: None


def _short(rate: float) -> float:
    """To four digits: more of them are noise."""
    return float(f"{rate:.4g}")
