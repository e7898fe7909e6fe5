"""Choosing schedules by timing them on the device (`tune="measure"`), remembered on disk.

What is timed is a kernel alone, on memory of its own: floats are random, integers 0, which is an
index into anything. An entry is for one kernel, device and bucket of sizes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..codegen.program import ProgramSpec
from ..codegen.steps import KernelStep, Step
from ..codegen.triton_kernel import TritonKernel, emit_triton
from ..codegen.triton_matmul import MatmulTile, emit_matmul
from ..codegen.triton_schedule import TritonSchedule, candidates, power_of_two
from ..ir.nest_text import print_kernel
from .driver import Driver
from .launcher import Launcher
from .triton_bench import Bench
from .triton_kernels import Code, LoadedKernel, Note, TritonKernels
from .triton_matmuls import Fusible

BETTER = 0.97
"""Another choice than the one by rule is taken when its time is at most so much of that one's."""


@dataclass(frozen=True)
class _Library:
    """The choice to leave a product to the library."""

    library: bool = True


Choice = TritonSchedule | MatmulTile | _Library


class Tuner:
    """Schedules by measurement.

    Args:
        kernels: that compile and load candidates.
        folder: where entries are kept; None: only in this process.
        note: told what was measured, and why measuring is not possible.
    """

    def __init__(
        self,
        kernels: TritonKernels,
        driver: Driver,
        launcher: Launcher,
        folder: Path | None,
        note: Note,
    ) -> None:
        self._kernels = kernels
        self._driver = driver
        self._folder = None if folder is None else folder / "tuned"
        self._note = note
        self._known: dict[str, Choice] = {}
        self._bench = driver, launcher

    def schedule(
        self, spec: ProgramSpec, step: KernelStep, sizes: Mapping[str, int], kernel: TritonKernel
    ) -> TritonSchedule:
        """The fastest schedule known for a step with these sizes; measured if none is."""
        own = {name: sizes[name] for name in step.sizes}
        key = self._key(print_kernel(replace(kernel.kernel, name="_")), own)
        known = self._known.get(key) or self._read(key, TritonSchedule)
        if known is None:
            with self._within_memory(kernel.kernel.name):
                bench = Bench(spec, [step], sizes, self._bench)
                known = self._measured_schedule(bench, step, kernel)
            if known is None:
                return kernel.schedule
            self._write(key, known)
        self._known[key] = known
        assert isinstance(known, TritonSchedule)
        return known

    def matmul(
        self, spec: ProgramSpec, pair: Fusible, sizes: Mapping[str, int], kernel: TritonKernel
    ) -> MatmulTile | None:
        """How to cut a product that takes its epilogue along; None: the library and a kernel."""
        nest = print_kernel(replace(pair.epilogue.op.nest, name="_"))
        key = self._key(f"{pair.shape} {pair.buffer} {nest}", {})
        known = self._known.get(key) or self._read(key, MatmulTile, _Library)
        if known is None:
            with self._within_memory(pair.product.name):
                known = self._measured_matmul(spec, pair, sizes, kernel)
            if known is None:
                return None
            self._write(key, known)
        self._known[key] = known
        return known if isinstance(known, MatmulTile) else None

    # -- measuring --------------------------------------------------------------------------------

    def _measured_schedule(
        self, bench: Bench, step: KernelStep, kernel: TritonKernel
    ) -> TritonSchedule | None:
        times: dict[Any, float] = {}
        name = kernel.functions[0].name
        for schedule in candidates(kernel.kernel, kernel.schedule):
            made = self._loaded(
                partial(emit_triton, kernel.kernel, schedule, name), bench.divisible(step)
            )
            if made is None or (made.spilled and times):
                continue
            seconds = self._seconds(kernel.kernel.name, bench.kernel(step, made))
            if seconds is None:
                return None
            times[schedule] = seconds
        if not times:
            return None
        best = _fastest(times, kernel.schedule)
        self._tell(kernel.kernel.name, best, times, kernel.schedule)
        return best

    def _measured_matmul(
        self, spec: ProgramSpec, pair: Fusible, sizes: Mapping[str, int], kernel: TritonKernel
    ) -> MatmulTile | _Library | None:
        steps: list[Step] = [pair.product, pair.epilogue]
        bench = Bench(spec, steps, sizes, self._bench)
        nest, name = pair.epilogue.op.nest, kernel.functions[0].name
        made = self._loaded(lambda: kernel, bench.divisible(pair.epilogue))
        if made is None:
            return None
        product, epilogue = bench.extern(pair.product), bench.kernel(pair.epilogue, made)

        def both() -> None:
            product()
            epilogue()

        seconds = self._seconds(nest.name, both)
        if seconds is None:
            return None
        times: dict[Any, float] = {_Library(): seconds}
        for tile in pair.shape.tiles():
            found = self._loaded(
                partial(emit_matmul, nest, pair.buffer, pair.shape, tile, name),
                pair.divisible(sizes),
            )
            if found is None or found.spilled:
                continue
            seconds = self._seconds(nest.name, bench.matmul(pair, found))
            if seconds is not None:
                times[tile] = seconds
        best = _fastest(times, _Library())
        self._tell(f"{pair.product.name} and {nest.name}", best, times, _Library())
        return best

    @contextlib.contextmanager
    def _within_memory(self, name: str) -> Iterator[None]:
        """Measuring needs the memory of a step a second time: without it, the rule stands."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._note("tuning-impossible", kernel=name, reason=str(error))

    def _seconds(self, name: str, run: Callable[[], None]) -> float | None:
        try:
            return self._driver.seconds(run)
        except RuntimeError as error:
            self._note("tuning-impossible", kernel=name, reason=str(error))
            return None

    def _loaded(self, emit: Callable[[], Code], divisible: frozenset[str]) -> LoadedKernel | None:
        """A candidate on the device; None when the device refuses it."""
        try:
            return self._kernels.build(emit(), divisible)
        except Exception as error:  # too much shared memory, and the like: the others remain
            self._note("candidate-refused", reason=f"{type(error).__name__}: {error}"[:500])
            return None

    def _tell(self, name: str, best: Any, times: Mapping[Any, float], by_rule: Any) -> None:
        self._note(
            "tuned",
            kernel=name,
            schedule=asdict(best),
            seconds=times[best],
            by_rule=times.get(by_rule),
            candidates=len(times),
        )

    # -- remembering ------------------------------------------------------------------------------

    def _key(self, text: str, sizes: Mapping[str, int]) -> str:
        bucket = sorted((name, power_of_two(size)) for name, size in sizes.items())
        parts = (__version__, *_versions(), self._driver.name, str(bucket), text)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def _read(self, key: str, *kinds: type[Choice]) -> Choice | None:
        """An entry on disk; None when there is none, or none that makes sense."""
        if self._folder is None:
            return None
        try:
            found = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        for kind in kinds:
            if isinstance(found, dict) and set(found) == {field.name for field in fields(kind)}:
                return kind(**found)
        return None

    def _write(self, key: str, choice: Choice) -> None:
        if self._folder is None:
            return
        # Without a disk it is measured again in the next process.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / f"{key}.{os.getpid()}.tmp"
            partial.write_text(json.dumps(asdict(choice)), encoding="utf-8")
            partial.replace(self._folder / f"{key}.json")


@functools.cache
def _versions() -> tuple[str, ...]:
    import triton

    return torch.__version__, str(torch.version.cuda), triton.__version__


def _fastest(times: Mapping[Any, float], by_rule: Any) -> Any:
    """The choice that took least, unless that is within noise of the one by rule."""
    best = min(times, key=lambda choice: times[choice])
    return by_rule if times[best] > BETTER * times.get(by_rule, float("inf")) else best
