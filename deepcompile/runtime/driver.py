"""What the runtime asks of a device; every call of CUDA goes through a `Driver`.

`CudaDriver` is the real one. `InterpretedDriver` runs kernels on CPU memory with Triton's
interpreter, through the same launch table, so that all but speed is tested without a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from ..codegen.triton_function import TritonFunction
from .device_memory import DeviceMemory


@dataclass(frozen=True)
class Loaded:
    """A function that can be launched.

    Attributes:
        handle: what the driver's `launch` takes; never 0.
        threads: of a program.
        shared: bytes of shared memory of a program.
        spilled: bytes of a thread that did not fit its registers.
        hidden: pointers that the function takes behind its own arguments; they may be null.
    """

    handle: int
    threads: int
    shared: int
    spilled: int = 0
    hidden: int = 0


class NotCapturable(Exception):
    """A run cannot become a graph of the device; the message says why."""


class DeviceGraph(Protocol):
    """Launches that were captured once, to be run again as they were."""

    def replay(self) -> None:
        """Run all of them on the current stream."""
        ...


class Event(Protocol):
    """A point in a stream."""

    def query(self) -> bool:
        """Whether the device has come to it."""
        ...


class Driver(Protocol):
    """A device.

    Attributes:
        device: torch's name of it.
        name: of the kind of device: what is fast on one is fast on others of that name.
        launch: address of a C function like `cuLaunchKernel`.
        memory: shared by all programs on the device.
    """

    device: torch.device
    name: str
    launch: ctypes.c_void_p
    memory: DeviceMemory

    def load(
        self, module: ModuleType, function: TritonFunction, divisible: frozenset[str]
    ) -> Loaded:
        """Compile a function of a generated module, and put it on the device.

        Args:
            divisible: its arguments that are multiples of 16.

        Raises:
            Exception: whatever Triton raises on code that it refuses.
        """
        ...

    def error(self, status: int) -> Exception:
        """What a status other than 0 of `launch` means."""
        ...

    def current(self) -> AbstractContextManager[object]:
        """A block in which this is the current device of the thread."""
        ...

    def stream(self) -> int:
        """The current stream's handle."""
        ...

    def event(self) -> Event:
        """A new event, recorded on the current stream."""
        ...

    def host_memory(self, like: Tensor) -> Tensor:
        """A tensor on the host that the device can copy to without waiting."""
        ...

    def capturing(self) -> bool:
        """Whether the current stream is being captured, by whomever."""
        ...

    def capture(self, run: Callable[[], None]) -> DeviceGraph:
        """What `run` does on the device, not done yet.

        Raises:
            NotCapturable: when it cannot be had; the device is as before.
        """
        ...

    def seconds(self, run: Callable[[], None]) -> float:
        """How long the device takes for what `run` does, the median of several runs.

        Raises:
            RuntimeError: where time means nothing.
        """
        ...
