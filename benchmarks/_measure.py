"""What all suites share: alternating timing, CPU seconds of a process tree, results as JSON."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import importlib.util
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Operator = str  # "<=", ">=" or "<"


@dataclass(frozen=True)
class Measurement:
    """One number with its samples, all in `unit`; less is better unless said otherwise."""

    name: str
    value: float
    unit: str
    samples: tuple[float, ...] = ()
    less_is_better: bool = True


@dataclass(frozen=True)
class Check:
    """A promise and whether it holds: `value operator limit`."""

    name: str
    value: float
    operator: Operator
    limit: float

    @property
    def passed(self) -> bool:
        compare = {"<=": float.__le__, "<": float.__lt__, ">=": float.__ge__}[self.operator]
        return compare(float(self.value), float(self.limit))


@dataclass(frozen=True)
class SuiteResult:
    """What a suite hands back. `notes` say what was measured and what was left out."""

    suite: str
    measurements: tuple[Measurement, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        result = asdict(self)
        for entry, check in zip(result["checks"], self.checks, strict=True):
            entry["passed"] = check.passed
        return result


@dataclass(frozen=True)
class Plan:
    """How much to measure: what the command line chose."""

    quick: bool = False
    backends: tuple[str, ...] = ("eager", "inductor", "deepep")
    models: tuple[str, ...] = ("demo", "bert", "vit", "gpt2")

    def pick(self, full: int, quick: int) -> int:
        """`full`, or `quick` in a quick run."""
        return quick if self.quick else full


def available_backends(names: Iterable[str]) -> tuple[str, ...]:
    """The backends of `names` that can run in this environment."""
    missing = set() if importlib.util.find_spec("deepcompile.backend") else {"deepep"}
    return tuple(name for name in names if name not in missing)


def compile_with(function: Any, backend: str, **options: Any) -> Any:
    """`function` for eager; else what a user gets from `torch.compile` with nothing tuned."""
    if backend == "eager":
        return function
    import torch

    return torch.compile(function, backend=backend, options=options or None)


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect garbage now and not again before the block ends."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    warmup: int = 3,
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one sample a round.

    In each round each contender has one turn of about `seconds`, in an order that rotates, so that
    a slow moment of the machine meets all of them. The number of calls in a turn is fixed from the
    last warm-up call.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    with collector_paused():
        calls = {
            name: max(1, round(seconds / _warm_up(function, warmup)))
            for name, function in contenders.items()
        }
        for index in range(rounds):
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(_seconds_per_call(contenders[name], calls[name]))
    return samples


def _warm_up(function: Callable[[], object], calls: int) -> float:
    """Seconds of the last of `calls` calls."""
    for _ in range(calls):
        last = _seconds_per_call(function, 1)
    return last


def _seconds_per_call(function: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of `numerator / denominator`: noise that lasts a round cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def tree_cpu_seconds(root: int | None = None) -> tuple[float, float]:
    """CPU seconds so far of a process, and of all its descendants, living or waited for.

    `RUSAGE_CHILDREN` alone misses the living: Inductor's compile workers outlive the compile.
    """
    root = root or os.getpid()
    ticks = os.sysconf("SC_CLK_TCK")
    stats: dict[int, tuple[int, list[int]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        stats[int(entry.name)] = (int(fields[1]), [int(field) for field in fields[11:15]])
    own = sum(stats[root][1][:2]) / ticks
    total = 0
    family = [root]
    for pid in family:
        total += sum(stats[pid][1])
        family.extend(child for child, (parent, _) in stats.items() if parent == pid)
    return own, total / ticks - own


def metadata() -> dict[str, Any]:
    """Where, when and with what the numbers were made."""
    import torch

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "modified_files": len(_git("status", "--porcelain").splitlines()),
        "device": _device(),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {
            name: version(name) for name in ("torch", "transformers", "triton", "deepcompile")
        },
    }


def _git(*arguments: str) -> str:
    root = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git
        return ""
    return done.stdout.strip()


def _device() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
