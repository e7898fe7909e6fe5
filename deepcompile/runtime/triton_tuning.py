"""Choosing schedules by timing them on the device (`tune="measure"`), remembered on disk.

What is timed is a kernel alone, on memory of its own: floats are random, integers 0, which is an
index into anything. An entry is for one kernel, device and bucket of sizes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..codegen.program import ProgramSpec
from ..codegen.steps import KernelStep, Slot
from ..codegen.triton_kernel import TritonKernel, emit_triton
from ..codegen.triton_schedule import TritonSchedule, candidates, power_of_two
from ..ir.nest_text import print_kernel
from .driver import Driver
from .launch_table import LaunchTable
from .launcher import CALLBACK, Launcher
from .triton_kernels import LoadedKernel, Note, TritonKernels
from .triton_launches import divisible_arguments, launches

BETTER = 0.97
"""Another schedule than the one by rule is taken when its time is at most so much of that one's."""
_GUARD = 64


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
        self._launcher = launcher
        self._folder = None if folder is None else folder / "tuned"
        self._note = note
        self._known: dict[str, TritonSchedule] = {}

    def schedule(
        self, spec: ProgramSpec, step: KernelStep, sizes: Mapping[str, int], kernel: TritonKernel
    ) -> TritonSchedule:
        """The fastest schedule known for a step with these sizes; measured if none is."""
        key = self._key(kernel, sizes)
        known = self._known.get(key) or self._read(key)
        if known is None:
            known = self._measure(spec, step, sizes, kernel)
            if known is None:
                return kernel.schedule
            self._write(key, known)
        self._known[key] = known
        return known

    # -- measuring --------------------------------------------------------------------------------

    def _measure(
        self, spec: ProgramSpec, step: KernelStep, sizes: Mapping[str, int], kernel: TritonKernel
    ) -> TritonSchedule | None:
        offsets = [int(offset.evaluate(spec_sizes(spec, sizes))) for offset in step.offsets]
        bench = _Bench(spec, step, sizes, offsets, self._driver, self._launcher)
        times: dict[TritonSchedule, float] = {}
        for schedule in candidates(kernel.kernel, kernel.schedule):
            made = self._loaded(kernel, schedule, bench.divisible)
            if made is None or (made.spilled and times):
                continue
            try:
                times[schedule] = self._driver.seconds(bench.run_of(made))
            except RuntimeError as error:
                self._note("tuning-impossible", kernel=kernel.kernel.name, reason=str(error))
                return None
        if not times:
            return None
        best = min(times, key=lambda schedule: times[schedule])
        by_rule = times.get(kernel.schedule)
        if by_rule is not None and times[best] > BETTER * by_rule:
            best = kernel.schedule
        self._note(
            "tuned",
            kernel=kernel.kernel.name,
            schedule=asdict(best),
            seconds=times[best],
            by_rule=by_rule,
            candidates=len(times),
        )
        return best

    def _loaded(
        self, kernel: TritonKernel, schedule: TritonSchedule, divisible: frozenset[str]
    ) -> LoadedKernel | None:
        """A candidate on the device; None when the device refuses it."""
        try:
            name = kernel.functions[0].name
            return self._kernels.build(emit_triton(kernel.kernel, schedule, name), divisible)
        except Exception as error:  # too much shared memory, and the like: the others remain
            self._note("candidate-refused", kernel=kernel.kernel.name, reason=str(error)[:500])
            return None

    # -- remembering ------------------------------------------------------------------------------

    def _key(self, kernel: TritonKernel, sizes: Mapping[str, int]) -> str:
        bucket = sorted((name, power_of_two(size)) for name, size in sizes.items())
        text = print_kernel(replace(kernel.kernel, name="_"))
        parts = (__version__, self._driver.name, str(bucket), text)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def _read(self, key: str) -> TritonSchedule | None:
        """An entry on disk; None when there is none, or none that makes sense."""
        if self._folder is None:
            return None
        try:
            found = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            return TritonSchedule(**found)
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, key: str, schedule: TritonSchedule) -> None:
        if self._folder is None:
            return
        # Without a disk it is measured again in the next process.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / f"{key}.{os.getpid()}.tmp"
            partial.write_text(json.dumps(asdict(schedule)), encoding="utf-8")
            partial.replace(self._folder / f"{key}.json")


def spec_sizes(spec: ProgramSpec, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """Sizes by name for offsets, which may use more of them than the kernel does."""
    return dict.fromkeys(spec.sizes, 0) | dict(sizes)


class _Bench:
    """Memory on which one step can run again and again."""

    def __init__(
        self,
        spec: ProgramSpec,
        step: KernelStep,
        sizes: Mapping[str, int],
        offsets: list[int],
        driver: Driver,
        launcher: Launcher,
    ) -> None:
        self._driver = driver
        self._launcher = launcher
        self._sizes = {name: sizes[name] for name in step.sizes}
        self.divisible = divisible_arguments(step.op.nest, offsets, self._sizes)
        known = spec_sizes(spec, sizes)
        memory: dict[int, Tensor] = {}
        for slot in step.slots:
            memory.setdefault(slot, _filled(spec.slots[slot], known, max(offsets), driver.device))
        order = list(memory)
        self._tensors = list(memory.values())
        self._places = [
            (order.index(slot), offset) for slot, offset in zip(step.slots, offsets, strict=True)
        ]
        self._failed = torch.zeros(1, dtype=torch.int32, device=driver.device)

    def run_of(self, made: LoadedKernel) -> Callable[[], None]:
        """What runs a kernel once."""
        tensors = list(self._tensors)

        def workspace(elements: int, dtype: torch.dtype) -> int:
            tensors.append(torch.empty(elements, dtype=dtype, device=self._driver.device))
            return len(tensors) - 1

        table = LaunchTable()
        given = self._sizes, self._places, self.divisible, workspace, self._failed.data_ptr()
        for launch in launches(made, *given):
            record = made.assuming[launch.function]
            table.launch(record, record, launch.programs, launch.arguments)
        numbers = table.done()
        pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        callback = CALLBACK(lambda number: 1)

        def run() -> None:
            error = ctypes.c_int()
            stream = self._driver.stream()
            walk: Any = self._launcher.walk
            if walk(numbers, pointers, stream, self._driver.launch, callback, ctypes.byref(error)):
                raise self._driver.error(error.value)

        run.memory = tensors  # type: ignore[attr-defined]
        return run


def _filled(slot: Slot, sizes: Mapping[str, int], behind: int, device: torch.device) -> Tensor:
    """Memory like that of a slot, and `behind` bytes more."""
    shape = [int(size.evaluate(sizes)) for size in slot.layout.shape]
    strides = [int(stride.evaluate(sizes)) for stride in slot.layout.strides]
    span = 1 + _last(shape, strides) + -(-behind // slot.layout.dtype.itemsize) + _GUARD
    made = torch.zeros(span, dtype=slot.layout.dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    return made.normal_(generator=generator) if made.is_floating_point() else made


def _last(shape: Iterable[int], strides: Iterable[int]) -> int:
    return sum(max(0, size - 1) * stride for size, stride in zip(shape, strides, strict=True))
