"""Failed index checks of kernels on a GPU, found without waiting for it.

A kernel sets a flag in device memory. After each call the flags are copied to the host behind the
kernels, and read when they have arrived: the error comes with a later call, as CUDA's own do. On a
CPU the flags are read at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Flags:
    """One flag for each of `count` kernels on `device`; `error` makes the exception of a kernel."""

    def __init__(
        self, count: int, device: torch.device, error: Callable[[int], IndexError]
    ) -> None:
        self._flags = torch.zeros(count, dtype=torch.int32, device=device)
        self._error = error
        self._arrived: torch.cuda.Event | None = None
        self._copy: Tensor | None = None

    def of(self, kernel: int) -> Tensor:
        """The flag that kernel number `kernel` sets."""
        return self._flags[kernel : kernel + 1]

    def after_launch(self) -> None:
        """Raise what a kernel on a CPU found; on a GPU it is not known yet."""
        if self._flags.device.type == "cpu":
            self._raise(self._flags)

    def before_call(self) -> None:
        """Raise what earlier calls found, as far as it is known."""
        if self._arrived is not None and self._copy is not None and self._arrived.query():
            self._arrived = None
            self._raise(self._copy)

    def after_call(self) -> None:
        """Send for the flags, unless they are on their way."""
        if self._flags.device.type == "cpu" or self._arrived is not None:
            return
        if torch.cuda.is_current_stream_capturing():
            return
        if self._copy is None:
            self._copy = torch.empty(self._flags.shape, dtype=torch.int32, pin_memory=True)
        self._copy.copy_(self._flags, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def _raise(self, flags: Tensor) -> None:
        if not bool(flags.any()):
            return
        kernel = int(flags.nonzero()[0, 0])
        self._flags.zero_()
        raise self._error(kernel)
