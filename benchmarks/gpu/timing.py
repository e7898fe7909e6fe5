"""Time on the device: CUDA events around cold-cache calls, contenders in turns.

On a CPU, for smoke runs, the host's timer stands in and nothing is flushed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks._measure import collector_paused

WARM_UP = 3
LONGEST_HEAD_START = 5e-3
CYCLES_A_SECOND = 2e9  # no clock is faster by much, so that the head start is never too short


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        run: what is timed; gets what `prepare` returned.
        prepare: runs before each call, outside the time.
        seconds: None times single calls of kernels: caches flushed, and the device kept busy until
            the host has queued them, so that launches cost nothing. A number times calls back to
            back for about so long, launches included.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = _nothing
    seconds: float | None = None


class HostClock:
    """The host's timer."""

    def synchronize(self) -> None:
        pass

    def broken(self) -> bool:
        """Whether the device runs nothing any more, as after an illegal access."""
        return False

    def cold(self, timed: Timed) -> float:
        """Seconds of one call."""
        given = timed.prepare()
        started = time.perf_counter()
        timed.run(given)
        return time.perf_counter() - started

    def calibrate(self, timed: Timed) -> None:
        """Learn what `cold` needs to know of a call."""

    def back_to_back(self, timed: Timed, calls: int) -> float:
        """Seconds a call of several, with nothing between them."""
        started = time.perf_counter()
        for _ in range(calls):
            timed.run(timed.prepare())
        return (time.perf_counter() - started) / calls

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Bytes allocated during a call beyond those before it, at the worst moment."""
        call()


class CudaClock(HostClock):
    """CUDA events on the current stream."""

    def __init__(self) -> None:
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
        self._flush = torch.empty(max(2 * cache, 64 << 20), dtype=torch.int8, device="cuda")
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        self._head_starts: dict[int, int] = {}

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def broken(self) -> bool:
        try:
            torch.cuda.synchronize()
            torch.empty(1, device="cuda").zero_().item()
        except RuntimeError:  # an out-of-memory error is one too, but one byte is always left
            return True
        return False

    def calibrate(self, timed: Timed) -> None:
        """How long the host takes to queue a call: for so long the device is kept busy first."""
        longest = 0.0
        for _ in range(WARM_UP):
            given = timed.prepare()
            torch.cuda.synchronize()
            started = time.perf_counter()
            timed.run(given)
            longest = max(longest, time.perf_counter() - started)
        head_start = min(1.5 * longest + 50e-6, LONGEST_HEAD_START)
        self._head_starts[id(timed)] = int(head_start * CYCLES_A_SECOND)

    def cold(self, timed: Timed) -> float:
        given = timed.prepare()
        self._flush.zero_()
        torch.cuda._sleep(self._head_starts[id(timed)])
        self._start.record()
        timed.run(given)
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    def back_to_back(self, timed: Timed, calls: int) -> float:
        torch.cuda.synchronize()
        self._start.record()
        for _ in range(calls):
            timed.run(timed.prepare())
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / calls

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def in_turns(
    clock: HostClock, contenders: Mapping[str, Timed], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """One sample a round of each contender, in an order that rotates; and those that failed.

    A contender that fails is left out from then on, and its samples with it.
    """
    samples: dict[str, list[float]] = {}
    failed: dict[str, Exception] = {}
    calls: dict[str, int] = {}
    with collector_paused():
        for name, timed in contenders.items():
            try:
                calls[name] = _warm_up(clock, timed)
                samples[name] = []
            except Exception as error:  # any: it is somebody else's code that is measured
                failed[name] = error
        for index in range(rounds):
            names = list(samples)
            shift = index % max(len(names), 1)
            for name in names[shift:] + names[:shift]:
                timed = contenders[name]
                try:
                    samples[name].append(
                        clock.cold(timed)
                        if timed.seconds is None
                        else clock.back_to_back(timed, calls[name])
                    )
                except Exception as error:
                    failed[name] = error
                    del samples[name]
    return samples, failed


def _warm_up(clock: HostClock, timed: Timed) -> int:
    """Run it a few times; how many calls make a sample."""
    if timed.seconds is None:
        clock.calibrate(timed)
        return 1
    clock.back_to_back(timed, 1)
    once = clock.back_to_back(timed, WARM_UP - 1)
    return max(1, min(1000, round(timed.seconds / max(once, 1e-7))))
