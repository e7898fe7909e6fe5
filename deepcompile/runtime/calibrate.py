"""Asking the machine what the cost tables only assume."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch

from ..codegen.gemm import onednn_available
from ..cost.gemm import GemmChoice

ROWS, COLUMNS, DEPTH = 1024, 512, 256
ROUNDS = 5


@lru_cache(maxsize=8)
def measured_gemm_choice(threads: int) -> GemmChoice:
    """Which library is faster on one product of a transformer's size, once a process.

    `threads` is that of torch at the time; the answer may differ with it.
    """
    if not onednn_available():
        return GemmChoice(onednn=False)
    left, right = torch.randn(ROWS, DEPTH), torch.randn(COLUMNS, DEPTH)
    linear = torch.ops.mkldnn._linear_pointwise
    best = {"mkl": float("inf"), "onednn": float("inf")}
    contenders: dict[str, Callable[[], torch.Tensor]] = {
        "mkl": lambda: torch.mm(left, right.t()),
        "onednn": lambda: linear(left, right, None, "none", [], ""),
    }
    for _ in range(ROUNDS):
        for name, product in contenders.items():
            start = time.perf_counter()
            product()
            best[name] = min(best[name], time.perf_counter() - start)
    return GemmChoice(onednn=best["onednn"] < best["mkl"])
