"""HiGHS prints a line now and then, whatever it is told; standard output may be for a program."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_saved: int | None = None
"""Standard output while it is elsewhere."""


@contextmanager
def solver_output_apart() -> Iterator[None]:
    """What is written to standard output meanwhile goes to standard error.

    For moments, on the main thread; elsewhere nothing changes. What C and Python keep back of
    earlier output is written where it should be. Other threads that write just then, and
    processes that they start, write to standard error, too.
    """
    global _saved
    if _saved is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _flush()
    with suppress(OSError):  # closed: nobody reads it
        _saved = os.dup(1)
    try:
        if _saved is not None:
            with suppress(OSError):
                os.dup2(2, 1)
        yield
    finally:
        try:
            _flush()
        finally:
            _give_back()


def _give_back() -> None:
    global _saved
    if _saved is not None:
        os.dup2(_saved, 1)
        os.close(_saved)
        _saved = None


os.register_at_fork(after_in_child=_give_back)


def _flush() -> None:
    """Let C write what it keeps back of standard output."""
    library = ctypes.CDLL(None)
    name = "__stdoutp" if sys.platform == "darwin" else "stdout"
    library.fflush(ctypes.c_void_p.in_dll(library, name))
