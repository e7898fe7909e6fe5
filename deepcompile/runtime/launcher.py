"""The C function that walks launch tables, built once for all programs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

from ..options import Options
from .build import build

CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64)
"""Back into Python with a number; not 0 ends the walk."""


@lru_cache(maxsize=1)
def _text() -> str:
    return (resources.files(__package__) / "launcher.h").read_text()


def load_walker(options: Options, note: Callable[..., None]) -> Any:
    """`walk(table, slots, stream, launch, copy, call, error)` as launcher.h has it.

    Raises:
        CompilerMissing: when there is no C++ compiler and the walker is not cached.
        BuildFailed: when the compiler refuses it.
    """
    walk = build(_text(), options, note).handle.deepcompile_walk
    walk.restype = ctypes.c_int64
    walk.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        CALLBACK,
        ctypes.POINTER(ctypes.c_int),
    ]
    return walk
