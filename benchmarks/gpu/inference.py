"""Inference at batch 1 in bf16: latency, memory and compiling."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import models
from benchmarks.gpu.contenders import (
    Builders,
    Prepared,
    compile_as,
    difference,
    fallbacks_of,
    seconds_of,
    with_graphs,
)
from benchmarks.gpu.harness import Case, Session
from benchmarks.gpu.timing import Timed

LENGTH = 128
TOLERANCE = 5e-2
NOTES = (
    f"one sequence of {LENGTH} tokens, or one image; calls back to back, launches included",
    "inductor-graphs is mode='reduce-overhead', which replays CUDA graphs",
)


def cases(session: Session) -> Iterator[Case]:
    names = ("llama", "gpt2", "vit", "bert")
    for name in names[: session.plan.pick(4, 1, 2)]:
        build = functools.partial(_build, name, session)
        yield Case(f"{name} batch 1", build, session.plan.pick(9, 3, 2))


def _build(name: str, session: Session) -> Builders:
    plan = session.plan
    model = models.build(name, plan).eval().requires_grad_(False)
    given, _ = models.batch_of(name, plan, count=1, length=LENGTH)
    with torch.no_grad():
        expected = model(given)
    fixed = sum(part.nbytes for part in (*model.parameters(), *model.buffers(), given))
    contenders = ("eager", "deepep", "inductor", *with_graphs(plan))
    return {
        contender: functools.partial(_prepare, contender, model, given, expected, fixed, session)
        for contender in contenders
    }


def _prepare(
    contender: str, model: nn.Module, given: Tensor, expected: Tensor, fixed: int, session: Session
) -> Prepared:
    function = compile_as(contender, model, session.plan)

    def call(_: Any = None) -> Tensor:
        with torch.no_grad():
            return function(given)

    found: list[Tensor] = []
    with fallbacks_of(contender) as fallbacks:
        compiling = seconds_of(lambda: found.append(call().clone()), session.clock.synchronize)
    wrong = difference(found, [expected], ["logits"], tolerance=TOLERANCE)
    found.clear()
    for _ in range(2):  # CUDA graphs are recorded in the second call
        call()
    once = {} if contender == "eager" else {"compile": (compiling, "s")}
    peak = session.clock.peak_bytes(call)
    # What a graph replays needs memory that was taken when it was recorded.
    if peak is not None and not contender.endswith("-graphs"):
        once["peak memory"] = (peak + fixed, "B")
    seconds = session.plan.pick(100, 30, 0) / 1e3
    return Prepared({"call": Timed(call, seconds=seconds)}, once, wrong, fallbacks)
