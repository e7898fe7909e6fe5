"""The C function that walks launch tables, built once for all programs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

from torch import Tensor

from ..options import Options
from .build import build

CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64)
"""Back into Python with a number; not 0 ends the walk."""


@lru_cache(maxsize=1)
def _text() -> str:
    return (resources.files(__package__) / "launcher.h").read_text()


class Launcher:
    """The C functions of launcher.h.

    Raises:
        CompilerMissing: when there is no C++ compiler and they are not cached.
        BuildFailed: when the compiler refuses them.
    """

    def __init__(self, options: Options, note: Callable[..., None]) -> None:
        handle = build(_text(), options, note).handle
        self.walk: Any = handle.deepcompile_walk
        self.walk.restype = ctypes.c_int64
        self.walk.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            CALLBACK,
            ctypes.POINTER(ctypes.c_int),
        ]
        self._places = handle.deepcompile_places
        self._places.restype = None
        self._places.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]

    def write_places(self, sources: Any, slots: Any, places: Tensor) -> None:
        """Fill `places`, i64 on the host, with the addresses that `sources` name."""
        self._places(sources, slots, places.numel(), places.data_ptr())
