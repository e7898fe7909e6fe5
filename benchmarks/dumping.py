"""What keeping every state of every graph costs a compile, and what it costs to keep none.

A compile is the first forward and backward pass of a model, in one process, with warm kernel
caches, so that the C++ compiler, which dumping does not touch, hides nothing. Counted are CPU
seconds of the process. The ways take turns, in an order that rotates; ratios are of the same round,
and of them the median is taken.

- `off`: no run directory. - `all`: a run directory with the text of every state, changed or not.
- `changed`: the default of a run directory. - `none`: a run directory without texts of graphs.

What dumping costs where there is none is too little to see as a ratio of whole compiles. So it is
measured where it happens too: the CPU seconds spent in what a compile calls for the sake of
recording (events, instruments, files), as a share of the rest of the compile.
"""

from __future__ import annotations

import atexit
import functools
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._measure import (
    Check,
    Measurement,
    Plan,
    SuiteResult,
    collector_paused,
    compile_with,
    paired_ratio,
)

LIMIT_ALL = 1.15
LIMIT_OFF = 0.01
WAYS = ("off", "none", "changed", "all")


def run(plan: Plan) -> SuiteResult:
    """CPU seconds of a compile in each way, on each model."""
    from benchmarks import models

    measurements: list[Measurement] = []
    checks: list[Check] = []
    details: dict[str, Any] = {}
    for name in plan.models:
        model = models.build(name)
        batch = model.batch(0)

        def step(compiled: Any, batch: Any = batch) -> None:
            models.loss_of(compiled, batch).backward()

        samples, shares = measure(model.module, step, plan.pick(15, 3))
        measurements += [
            Measurement(f"{name}/{way}", statistics.median(taken), "CPU s", tuple(taken))
            for way, taken in samples.items()
        ]
        ratios = {way: paired_ratio(samples[way], samples["off"]) for way in WAYS[1:]}
        medians = {way: statistics.median(taken) for way, taken in shares.items()}
        measurements += [
            Measurement(f"{name}/{way} / off", ratio, "ratio") for way, ratio in ratios.items()
        ]
        measurements += [
            Measurement(f"{name}/recording when {way}", medians[way], "share", tuple(taken))
            for way, taken in shares.items()
        ]
        checks.append(Check(f"{name}: dumping everything", ratios["all"], "<=", LIMIT_ALL))
        checks.append(Check(f"{name}: dumping nothing", medians["off"], "<", LIMIT_OFF))
        details[name] = {"ratios": ratios, "shares": medians}
    notes = tuple(" ".join(part.split()) for part in (__doc__ or "").split("\n\n"))
    return SuiteResult("dumping", tuple(measurements), tuple(checks), notes, details)


def measure(
    module: Any, step: Callable[[Any], None], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """CPU seconds a compile by way, and the shares of recording with no run and a full one."""
    samples: dict[str, list[float]] = {way: [] for way in WAYS}
    shares: dict[str, list[float]] = {"off": [], "all": []}
    with collector_paused():
        for way in WAYS:
            _compile_seconds(module, step, way)
        for index in range(rounds):
            shift = index % len(WAYS)
            for way in WAYS[shift:] + WAYS[:shift]:
                samples[way].append(_compile_seconds(module, step, way))
            for way, found in shares.items():
                with _recording_timed() as spent:
                    whole = _compile_seconds(module, step, way)
                found.append(sum(spent) / (whole - sum(spent)))
    return samples, shares


def _compile_seconds(module: Any, step: Callable[[Any], None], way: str) -> float:
    import torch

    torch._dynamo.reset()
    gc.collect()
    root = tempfile.mkdtemp(dir=_folder())
    options = {} if way == "off" else {"run_dir": root, "dump": way}
    compiled = compile_with(module, "deepep", **options)
    started = time.process_time()
    step(compiled)
    spent = time.process_time() - started
    if way != "off":
        _check_written(Path(root), way)
    return spent


@functools.cache
def _folder() -> str:
    """Where runs go; it is there until they have said how they ended, when the process exits."""
    folder = tempfile.mkdtemp(prefix="dumping-")
    atexit.register(shutil.rmtree, folder)
    return folder


def _check_written(root: Path, way: str) -> None:
    """Every state must be there: a dump that failed would look quick."""
    texts = sum(1 for _ in root.rglob("*.ir"))
    states = sum(1 for _ in root.rglob("graphs/*/*.json"))
    expected = {"none": texts == 0, "changed": 0 < texts < states, "all": texts == states}
    if not states or not expected[way]:
        raise RuntimeError(f"dump={way!r} kept {texts} texts of {states} states")


@contextmanager
def _recording_timed() -> Iterator[list[float]]:
    """Seconds of each call for the sake of recording, inside the block."""
    from deepcompile import backend
    from deepcompile.pipeline import context, instruments

    spent: list[float] = []
    places: list[tuple[Any, str]] = [
        (backend._Compiler, "note"),
        (backend, "standard_instruments"),
        (backend._Compiler, "_record_program"),
        (backend, "process_run"),
        (context.Context, "note"),
        (instruments.Dumper, "before_passes"),
        (instruments.Dumper, "after_pass"),
    ]
    depth = 0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if depth:
                return function(*args, **kwargs)
            depth += 1
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                spent.append(time.process_time() - started)

        return call

    kept = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, kept, strict=True):
        setattr(owner, name, timed(function))
    try:
        yield spent
    finally:
        for (owner, name), function in zip(places, kept, strict=True):
            setattr(owner, name, function)
