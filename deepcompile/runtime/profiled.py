"""Names in torch.profiler: a range for each run of a compiled graph, and for each of its kernels.

Calls of ATen have ranges of torch's, and kernels on a GPU have those of its driver. Without a
profiler a run pays one look at a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.autograd import profiler
from torch.profiler import record_function

from ..codegen.program import ProgramSpec
from ..codegen.steps import KernelStep, TableStep

_MOST_OPS = 4


def named_in_profiles(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`run` by the boxed convention, each call of which is a range of this name."""

    boxed = getattr(run, "_boxed_call", False)

    def call(args: list[Any]) -> Any:
        if not profiler._is_profiler_enabled:
            return run(args) if boxed else run(*args)
        with record_function(name):
            return run(args) if boxed else run(*args)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def range_names(spec: ProgramSpec) -> Mapping[int, str]:
    """By the number of each step that is a kernel: its name and what it computes, in short."""
    return {
        number: _range_name(step)
        for number, step in enumerate(spec.steps)
        if isinstance(step, (KernelStep, TableStep))
    }


def _range_name(step: KernelStep | TableStep) -> str:
    ops = [op.removeprefix("aten.").partition(".")[0] for op in step.op.origin.ops]
    distinct = list(dict.fromkeys(ops))
    more = f" +{len(distinct) - _MOST_OPS}" if len(distinct) > _MOST_OPS else ""
    return f"kernel {step.op.nest.name}: {' '.join(distinct[:_MOST_OPS])}{more}"


class KernelRanges:
    """Opens a range where a kernel starts and closes it where it ends; for one run of a program.

    Called by the program with the number of a step before it, and with `~number` after it.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._open: Any = None

    def __call__(self, number: int) -> None:
        if number >= 0:
            self._open = record_function(self._names[number])
            self._open.__enter__()
        elif self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
