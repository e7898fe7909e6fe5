"""Training steps in bf16: forward, backward and torch's fused AdamW. Time, memory, compiling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
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
)
from benchmarks.gpu.harness import Case, Session
from benchmarks.gpu.timing import Timed

TOLERANCE = 0.1
FLOOR = 0.01
LOSS_TOLERANCE = 0.01
NOTES = (
    "a step is forward, backward, fused AdamW and zero_grad, weights in bf16, the loss in float32;"
    " all contenders train the same weights",
    "compile is the first forward and backward, caches empty; peak memory is that of one step,"
    " weights and optimizer state included",
)


def cases(session: Session) -> Iterator[Case]:
    names = ("gpt2", "llama", "vit", "bert")
    for name in names[: session.plan.pick(4, 1, 4)]:
        build = functools.partial(_build, name, session)
        sizes = models.sizes_of(name, session.plan)
        subject = " images" if name == "vit" else f"x{sizes.length}"
        yield Case(f"{name} {sizes.batch}{subject}", build, session.plan.pick(7, 3, 1))


def _build(name: str, session: Session) -> Builders:
    plan = session.plan
    model = models.build(name, plan).train()
    batch = models.batch_of(name, plan, count=models.sizes_of(name, plan).batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    expected = _gradients(model, model, batch)
    fixed = sum(part.nbytes for part in model.parameters()) * 3  # with two moments
    fixed += sum(part.nbytes for part in (*model.buffers(), *batch))
    contenders = ("eager", "deepep", "inductor")
    return {
        contender: functools.partial(
            _prepare, contender, model, batch, optimizer, expected, fixed, session
        )
        for contender in contenders
    }


def _gradients(model: nn.Module, function: Callable[..., Any], batch: Any) -> list[Tensor]:
    """The loss, and the gradients of all parameters."""
    loss = function(*batch)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [loss.detach(), *gradients]


def _prepare(
    contender: str,
    model: nn.Module,
    batch: tuple[Tensor, ...],
    optimizer: torch.optim.Optimizer,
    expected: list[Tensor],
    fixed: int,
    session: Session,
) -> Prepared:
    """Raises what compiling raises. The weights must still be those of `expected`."""
    function = compile_as(contender, model, session.plan)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    found: list[Tensor] = []
    with fallbacks_of(contender) as fallbacks:
        compiling = seconds_of(
            lambda: found.extend(_gradients(model, function, batch)), session.clock.synchronize
        )
    names = [name for name, _ in model.named_parameters()]
    wrong = difference(found[:1], expected[:1], ["loss"], tolerance=LOSS_TOLERANCE) or difference(
        found[1:], expected[1:], names, tolerance=TOLERANCE, floor=FLOOR
    )
    found.clear()

    def step(_: Any = None) -> None:
        function(*batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # `backward` may compile apart from `autograd.grad`; and the optimizer's state is made
    peak = session.clock.peak_bytes(step)
    with torch.no_grad():
        for parameter, old in zip(model.parameters(), before, strict=True):
            parameter.copy_(old)
    once = {} if contender == "eager" else {"compile": (compiling, "s")}
    if peak is not None:
        once["peak memory"] = (peak + fixed, "B")
    seconds = session.plan.pick(400, 100, 0) / 1e3
    return Prepared({"step": Timed(step, seconds=seconds)}, once, wrong, fallbacks)
