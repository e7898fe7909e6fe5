"""Where the process of the command begins: Ctrl-C ends it quietly from the first moment on.

Python's own handler raises KeyboardInterrupt wherever it is: in the middle of imports that shows a
traceback, and in that of torch, which calls Python from C++, it may be lost altogether.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_LOSING = ("torch", "torch._dynamo")
_RETRY = 0.05
"""Seconds until an interrupt is tried again."""


def main() -> NoReturn:
    """The console script."""
    # Where it is ignored (`nohup`, a job in the background) it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    from deepcompile.cli.main import main as command

    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, _interrupt)
    command()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End at once: nothing has begun."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, after the import that would lose it."""
    if any(_is_loading(name) for name in _LOSING):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _RETRY)
        return
    raise KeyboardInterrupt


def _is_loading(name: str) -> bool:
    # As importlib itself asks; a Python without it raises at once.
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))
