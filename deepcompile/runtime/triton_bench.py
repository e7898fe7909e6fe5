"""Single steps of a program on memory of their own, to be timed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..codegen.program import ProgramSpec
from ..codegen.steps import ExternStep, KernelStep, Slot, Step, touched
from .driver import Driver
from .externs import prepare_extern
from .frame import Frame
from .launch_table import LaunchTable
from .launcher import CALLBACK, Launcher
from .triton_kernels import LoadedKernel
from .triton_launches import Launch, divisible_arguments, launches, matmul_launch
from .triton_matmuls import Fusible

_MARGIN = 1 << 10
"""Bytes behind each tensor, since a step may read from further on in a slot."""


class Bench:
    """Memory on which steps can run again and again: floats are random, integers 0."""

    def __init__(
        self,
        spec: ProgramSpec,
        steps: Sequence[Step],
        sizes: Mapping[str, int],
        device: tuple[Driver, Launcher],
    ) -> None:
        self._driver, self._launcher = device
        self._sizes = sizes
        self._frame = Frame(len(spec.slots))
        behind = _furthest(steps, sizes) + _MARGIN
        for number in sorted(set().union(*map(touched, steps))):
            tensor = _filled(spec.slots[number], sizes, behind, self._driver.device)
            self._frame.tensors[number] = tensor
            self._frame.pointers[number] = tensor.data_ptr()
        self._failed = torch.zeros(1, dtype=torch.int32, device=self._driver.device)

    def divisible(self, step: KernelStep) -> frozenset[str]:
        """Arguments of a step's kernel that are multiples of 16."""
        offsets = [offset for _, offset in self._places(step)]
        return divisible_arguments(step.op.nest, offsets, self._own(step))

    def kernel(self, step: KernelStep, made: LoadedKernel) -> Callable[[], None]:
        """What runs a kernel once."""
        memory: list[Tensor] = []

        def workspace(elements: int, dtype: torch.dtype) -> int:
            memory.append(torch.empty(elements, dtype=dtype, device=self._driver.device))
            return len(self._frame.tensors) + len(memory) - 1

        found = launches(
            made,
            self._own(step),
            self._places(step),
            self.divisible(step),
            workspace,
            self._failed.data_ptr(),
        )
        return self._walk(made, list(found), memory)

    def matmul(self, pair: Fusible, made: LoadedKernel) -> Callable[[], None]:
        """What runs a product with its epilogue once."""
        places = self._places(pair.epilogue)
        launch = matmul_launch(made, pair.operands, places, pair.divisible(self._sizes))
        return self._walk(made, [launch], [])

    def extern(self, step: ExternStep) -> Callable[[], None]:
        """What calls ATen once."""
        run = prepare_extern(step, self._sizes, frozenset())

        def call() -> None:
            with torch.no_grad():
                run(self._frame)

        return call

    def _own(self, step: KernelStep) -> dict[str, int]:
        return {name: self._sizes[name] for name in step.sizes}

    def _places(self, step: KernelStep) -> list[tuple[int, int]]:
        offsets = [int(offset.evaluate(self._sizes)) for offset in step.offsets]
        return list(zip(step.slots, offsets, strict=True))

    def _walk(
        self, made: LoadedKernel, found: list[Launch], memory: list[Tensor]
    ) -> Callable[[], None]:
        table = LaunchTable()
        for launch in found:
            record = made.assuming[launch.function]
            table.launch(record, record, launch.programs, launch.arguments)
        table.keep(memory)
        numbers = table.done()
        addresses = [*self._frame.pointers, *(tensor.data_ptr() for tensor in memory)]
        pointers = (ctypes.c_void_p * len(addresses))(*addresses)
        callback = CALLBACK(lambda number: 1)

        def run() -> None:
            error = ctypes.c_int()
            walk: Any = self._launcher.walk
            stream, launch = self._driver.stream(), self._driver.launch
            if walk(numbers, pointers, stream, launch, callback, ctypes.byref(error)):
                raise self._driver.error(error.value)

        return run


def _furthest(steps: Sequence[Step], sizes: Mapping[str, int]) -> int:
    """The largest offset in a slot at which a step begins, in bytes."""
    found = [0]
    for step in steps:
        if isinstance(step, KernelStep):
            found += [int(offset.evaluate(sizes)) for offset in step.offsets]
    return max(found)


def _filled(slot: Slot, sizes: Mapping[str, int], behind: int, device: torch.device) -> Tensor:
    """A tensor like that of a slot, with `behind` bytes more after it."""
    shape = [int(size.evaluate(sizes)) for size in slot.layout.shape]
    strides = [int(stride.evaluate(sizes)) for stride in slot.layout.strides]
    last = sum(max(0, n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    span = 1 + last + behind // slot.layout.dtype.itemsize
    made = torch.zeros(span, dtype=slot.layout.dtype, device=device)
    if made.is_floating_point():
        made.normal_(generator=torch.Generator(device).manual_seed(0))
    return made.as_strided(shape, strides)
