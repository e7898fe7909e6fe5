"""Who takes part, how each compiles a function, and whether what it computes is right."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.plan import Plan
from benchmarks.gpu.timing import Timed
from deepcompile.backend import deepep, recording
from deepcompile.options import MODES

OURS = "deepep"
MODES_OF_INDUCTOR: Mapping[str, str | None] = {
    "inductor": None,
    "inductor-max": "max-autotune-no-cudagraphs",
    "inductor-graphs": "reduce-overhead",
}
STAND_IN = "aot_eager stands in for Inductor"
COMPILED = (OURS, *MODES_OF_INDUCTOR)
NAMES = ("clone", "eager", "foreach", "fused", "cuda-graph", *COMPILED, f"{OURS}-graphs", "liger")


@dataclass
class Prepared:
    """A contender that is compiled, warm and checked.

    Attributes:
        timed: what to time, by metric.
        once: numbers known by now, by metric: value and unit.
        wrong: what was wrong about its results, else None; it is timed all the same, and marked.
        fallbacks: why parts of it run in eager; ours only.
    """

    timed: Mapping[str, Timed]
    once: dict[str, tuple[float, str]] = field(default_factory=dict)
    wrong: str | None = None
    fallbacks: list[str] = field(default_factory=list)


Builders = Mapping[str, Callable[[], Prepared]]


def compile_as(name: str, function: Any, plan: Plan) -> Any:
    """`function` as the contender `name` runs it, for one set of shapes.

    In a smoke run AOTAutograd alone stands in for Inductor, whose C++ compiler takes minutes.
    """
    if name == "eager":
        return function
    if name in MODES_OF_INDUCTOR:
        if plan.smoke:
            return torch.compile(function, backend="aot_eager", dynamic=False)
        return torch.compile(function, mode=MODES_OF_INDUCTOR[name], dynamic=False)
    # By function, not by name: names come from an installed package, which a checkout is not.
    if name == f"{OURS}-graphs":
        return torch.compile(function, backend=deepep, mode="reduce-overhead", dynamic=False)
    options = {"codegen": "triton"} if interpreted(plan) else None
    return torch.compile(function, backend=deepep, options=options, dynamic=False)


def interpreted(plan: Plan) -> bool:
    """Whether a smoke run takes our Triton kernels through Triton's interpreter."""
    return plan.smoke and os.environ.get("TRITON_INTERPRET") == "1"


def with_graphs(plan: Plan) -> tuple[str, ...]:
    """The contenders that replay CUDA graphs; ours once `mode="reduce-overhead"` sets something."""
    if plan.smoke:
        return ("inductor-graphs",)
    return (
        ("inductor-graphs", f"{OURS}-graphs") if MODES["reduce-overhead"] else ("inductor-graphs",)
    )


@contextmanager
def fallbacks_of(name: str) -> Iterator[list[str]]:
    """Filled, when the block ends, with the reasons why ours ran something in eager."""
    reasons: list[str] = []
    if not name.startswith(OURS):
        yield reasons
        return
    with recording() as record:
        yield reasons
    reasons += [str(fields.get("reason")) for event, fields in record.events if event == "fallback"]


def liger(function: str) -> Callable[..., Any] | None:
    """A function of Liger by name, or None where it is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    return getattr(importlib.import_module("liger_kernel.transformers.functional"), function, None)


def seconds_of(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Seconds of one call, to the end of what it queued."""
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


def difference(
    got: Sequence[Tensor],
    expected: Sequence[Tensor],
    names: Sequence[str],
    *,
    tolerance: float,
    floor: float = 0.0,
) -> str | None:
    """The first tensor that differs by more than rounding, described; None if none does.

    A tensor is right when the norm of its error is at most `tolerance` times its own norm plus
    `floor` times the norm of all: gradients that are zero but for rounding need the second.
    """
    if len(got) != len(expected):
        return f"{len(got)} results where {len(expected)} were expected"
    total = sum(float(tensor.float().norm()) ** 2 for tensor in expected) ** 0.5
    for name, mine, theirs in zip(names, got, expected, strict=True):
        if mine.shape != theirs.shape:
            return f"{name}: shape {tuple(mine.shape)} instead of {tuple(theirs.shape)}"
        reference = theirs.float()
        if bool(torch.isfinite(reference).all()) and not bool(torch.isfinite(mine).all()):
            return f"{name}: {int((~torch.isfinite(mine)).sum())} numbers are not finite"
        error = float((mine.float() - reference).norm())
        norm = float(reference.norm())
        if not error <= tolerance * norm + floor * total + 1e-12:
            return f"{name}: error {error:.3g} for a norm of {norm:.3g}"
    return None
