"""The OpenMP runtime that torch itself uses, so that kernels share its threads."""

from __future__ import annotations

import ctypes
import glob
import os
from functools import lru_cache
from pathlib import Path

import torch


@lru_cache(maxsize=1)
def openmp_entry_points() -> tuple[int, int, int] | None:
    """Addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads, or None.

    Looks at the libraries already loaded, then at those shipped with torch: two OpenMP runtimes in
    one process would fight for the cores.
    """
    for path in _candidates():
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LOCAL)
        except OSError:
            continue
        try:
            functions = (
                library.GOMP_parallel,
                library.omp_get_thread_num,
                library.omp_get_num_threads,
            )
        except AttributeError:
            continue
        a, b, c = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
        return a, b, c
    return None


def _candidates() -> list[str]:
    found: list[str] = []
    try:
        with open("/proc/self/maps", encoding="utf8") as maps:
            for line in maps:
                path = line.rstrip().rpartition(" ")[2]
                name = os.path.basename(path)
                if name.startswith(("libgomp", "libomp", "libiomp")) and path not in found:
                    found.append(path)
    except OSError:
        pass
    shipped = Path(torch.__file__).parent / "lib"
    found += glob.glob(str(shipped / "lib*omp*.so*"))
    return found
