"""HiGHS prints a line now and then, whatever it is told; standard output may be for a program."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOCK = threading.Lock()


@contextmanager
def solver_output_apart() -> Iterator[None]:
    """What C code prints to standard output meanwhile goes to standard error.

    What Python keeps back of its own output is written where it should be, afterwards.
    """
    with _LOCK:  # one at a time: else the second would give back what the first had put there
        _flush()
        try:
            saved = os.dup(1)
        except OSError:  # closed: nobody reads it
            yield
            return
        try:
            with suppress(OSError):
                os.dup2(2, 1)
            yield
        finally:
            _flush()
            os.dup2(saved, 1)
            os.close(saved)


def _flush() -> None:
    """Let C write what it keeps back."""
    ctypes.CDLL(None).fflush(None)
