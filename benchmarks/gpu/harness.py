"""Running cases: budgets, failures that stop nothing, and records after each case."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch._inductor.utils import clear_caches

from benchmarks.compile import CACHE_VARIABLES
from benchmarks.gpu.contenders import Builders, Prepared
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.report import Report, SuiteReport
from benchmarks.gpu.timing import CudaClock, HostClock, in_turns

Medians = Mapping[str, Mapping[str, float]]
"""Seconds by metric and contender."""

Derived = Iterable[tuple[str, str, float, str]]
"""Metric, contender, value and unit."""

PERCENT = " % of clone"
_NUMBERS = itertools.count()


def empty_caches(folder: Path) -> None:
    """Let every compiler find nothing on disk: what others compiled before must not help it."""
    fresh = folder / str(next(_NUMBERS))
    for variable in CACHE_VARIABLES:
        os.environ[variable] = str(fresh / variable.lower())
    clear_caches()  # those that Inductor keeps in memory


class DeviceBroken(Exception):
    """The device accepts no work any more; only a new process can go on."""


def _nothing_more(medians: Medians, prepared: Mapping[str, Prepared]) -> Derived:
    return ()


@dataclass(frozen=True)
class Case:
    """One subject.

    Attributes:
        name: unique in its suite.
        build: makes the inputs, and gives for each contender a function that prepares it.
        rounds: samples of each metric.
        derive: further numbers from the times of all contenders.
    """

    name: str
    build: Callable[[], Builders]
    rounds: int
    derive: Callable[[Medians, Mapping[str, Prepared]], Derived] = _nothing_more


@dataclass
class Session:
    """A run: its plan, its clock, what it found so far, and where compilers keep their files."""

    plan: Plan
    report: Report
    folder: Path
    clock: HostClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = CudaClock() if self.plan.device.type == "cuda" else HostClock()

    def run_suite(self, suite: SuiteReport, cases: Iterable[Case], deadline: float) -> None:
        """Run cases until `deadline`, in seconds of `time.time`; name those that are left out.

        Raises DeviceBroken after a failure that only a new process gets over; the contender that
        caused it is recorded, and left out of its case from then on.
        """
        started = time.time()
        for case in cases:
            if suite.is_done(case.name):
                continue
            if time.time() >= deadline:
                suite.skip(case.name, None)
                continue
            try:
                complete = self._run_case(suite, case, deadline)
            finally:
                suite.add_seconds(time.time() - started)
                started = time.time()
                self._clean_up()
                self.report.write()
            if complete:
                suite.finish(case.name)
        suite.add_seconds(time.time() - started)
        suite.end()
        self.report.running(None)
        self.report.write()

    def _run_case(self, suite: SuiteReport, case: Case, deadline: float) -> bool:
        """Whether every contender had its turn."""
        try:
            builders = case.build()
        except Exception as error:  # the inputs did not fit, say
            self._fail(suite, case, "inputs", error)
            return True
        complete = True
        prepared: dict[str, Prepared] = {}
        for name, build in builders.items():
            if not self.plan.allows(name) or suite.has_failed(case.name, name):
                continue
            if time.time() >= deadline and prepared:
                suite.skip(case.name, name)
                complete = False
                continue
            self.report.running(f"{suite.name}/{case.name}/{name}")
            empty_caches(self.folder)
            try:
                prepared[name] = build()
                self.clock.synchronize()
            except Exception as error:  # any: it is somebody else's code that is measured
                prepared.pop(name, None)
                self._fail(suite, case, name, error)
        for name, contender in prepared.items():
            if contender.wrong is not None:
                suite.fail(case.name, name, "wrong", contender.wrong)
            if contender.fallbacks:
                suite.fall_back(case.name, name, contender.fallbacks)
            for metric, (value, unit) in contender.once.items():
                suite.measure(case.name, metric, name, value, unit)
        self.report.running(f"{suite.name}/{case.name}/timing")
        medians = self._time(suite, case, prepared)
        for metric, contender_name, value, unit in case.derive(medians, prepared):
            suite.measure(case.name, metric, contender_name, value, unit)
        return complete

    def _time(
        self, suite: SuiteReport, case: Case, prepared: Mapping[str, Prepared]
    ) -> dict[str, dict[str, float]]:
        medians: dict[str, dict[str, float]] = {}
        metrics = dict.fromkeys(metric for one in prepared.values() for metric in one.timed)
        for metric in metrics:
            timed = {
                name: one.timed[metric] for name, one in prepared.items() if metric in one.timed
            }
            samples, failed = in_turns(self.clock, timed, case.rounds)
            for name, error in failed.items():
                self._fail(suite, case, name, error)
            medians[metric] = {name: statistics.median(found) for name, found in samples.items()}
            for name, found in samples.items():
                suite.measure(case.name, metric, name, medians[metric][name], "s", found)
            clone = medians[metric].get("clone")
            for name, median in medians[metric].items():
                if clone is not None and name != "clone":
                    suite.measure(case.name, metric + PERCENT, name, 100 * clone / median, "%")
        return medians

    def _fail(self, suite: SuiteReport, case: Case, name: str, error: Exception) -> None:
        suite.fail(case.name, name, "error", f"{type(error).__name__}: {error}")
        if self.clock.broken():
            self.report.write()
            raise DeviceBroken(f"{suite.name}/{case.name}/{name}") from error

    def _clean_up(self) -> None:
        with suppress(RuntimeError):  # where the device is broken, this process is replaced
            torch._dynamo.reset()
            gc.collect()
            if self.plan.device.type == "cuda":
                torch.cuda.empty_cache()
