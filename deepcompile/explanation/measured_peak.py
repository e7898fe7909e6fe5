"""The highest memory of one step, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..budget.report import BudgetReport
from ..runtime.arena import POOL
from ..runtime.recycle import OUTPUTS
from .tracked import peak_bytes


def measured_peak(
    step: Callable[[], Any], reports: Sequence[BudgetReport], device: torch.device
) -> int | None:
    """Bytes at the highest moment of a step, to compare with what was predicted.

    What the step takes is measured: by torch's counter on CUDA, on the CPU from every call of
    torch's allocator, which memory that ATen's libraries take by themselves does not go through.
    What is pinned (parameters, inputs, the assumed state of an optimizer) is added as predicted.

    Args:
        step: runs it, everything being compiled.
        reports: of the graphs that run in it.
        device: of the model.

    Returns:
        None when somebody else is profiling, for then nothing can be told.
    """
    peak = peak_of(step, device)
    if peak is None:
        return None
    return peak + sum(report.pinned.own + report.further for report in reports)


def peak_of(step: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a step takes at its highest above what is there before; None as above."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if torch.autograd._profiler_enabled():
        return None
    # Memory that is kept for a next call would not be taken in this one.
    POOL.clear()
    OUTPUTS.clear()
    return peak_bytes(step)
