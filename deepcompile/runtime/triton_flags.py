"""Failed index checks of kernels on a GPU, found without waiting for it.

A kernel sets a flag in device memory. After each call the flags are copied to the host behind the
kernels, and read when they have arrived: the error comes with a later call, as CUDA's own do. On a
CPU the flags are read at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .driver import Driver, Event


class Flags:
    """One flag for each of `count` kernels; `error` makes the exception of a kernel."""

    def __init__(self, count: int, driver: Driver, error: Callable[[int], IndexError]) -> None:
        self._driver = driver
        self._flags = torch.zeros(count, dtype=torch.int32, device=driver.device)
        self._error = error
        self._arrived: Event | None = None
        self._copy: Tensor | None = None

    def address(self, kernel: int) -> int:
        """Where kernel number `kernel` sets its flag."""
        return self._flags.data_ptr() + kernel * self._flags.element_size()

    def before_call(self) -> None:
        """Raise what earlier calls found, as far as it is known."""
        # Asking during a capture would end it.
        if self._arrived is None or self._copy is None or self._driver.capturing():
            return
        if self._arrived.query():
            self._arrived = None
            self._raise(self._copy)

    def after_call(self) -> None:
        """Send for the flags, unless they are on their way; on a CPU raise what they say."""
        if self._flags.device.type == "cpu":
            self._raise(self._flags)
            return
        if self._arrived is not None or self._driver.capturing():
            return
        if self._copy is None:
            self._copy = self._driver.host_memory(self._flags)
        self._copy.copy_(self._flags, non_blocking=True)
        self._arrived = self._driver.event()

    def _raise(self, flags: Tensor) -> None:
        if not bool(flags.any()):
            return
        kernel = int(flags.nonzero()[0, 0])
        self._flags.zero_()
        raise self._error(kernel)
