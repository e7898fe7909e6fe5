"""Optimizer steps compiled, against torch's own `foreach` and `fused=True`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contenders import (
    Builders,
    Prepared,
    compile_as,
    difference,
    fallbacks_of,
    seconds_of,
)
from benchmarks.gpu.harness import Case, Session
from benchmarks.gpu.plan import GIB, Plan
from benchmarks.gpu.timing import Timed

CHECKED_STEPS = 3
TOLERANCE = 1e-3  # float32; of the norm of the update
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01),
    "sgd": functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
}
TRAFFIC = {"adamw": 7, "sgd": 5}  # parameter, gradient and moments read, all but gradients written
NOTES = (
    "float32, on the parameters of a GPT-2: 148 tensors at 12 layers; calls back to back",
    "percent of clone: the time of torch.clone on as many bytes as a step must move",
)


def cases(session: Session) -> Iterator[Case]:
    plan = session.plan
    layers = plan.pick(12, 2, 1)
    chosen = (("adamw", layers), ("adamw", 2), ("sgd", layers))
    for name, count in list(dict.fromkeys(chosen))[: plan.pick(3, 1, 3)]:
        build = functools.partial(_build, name, count, session)
        tensors = len(shapes_of(count, plan))
        yield Case(f"{name} {tensors} tensors", build, plan.pick(15, 5, 2))


def shapes_of(layers: int, plan: Plan) -> list[tuple[int, ...]]:
    """The parameters of a GPT-2 with so many layers, narrower on a small card."""
    width, words = (768, 50304) if plan.memory >= 16 * GIB else (512, 8192)
    if plan.smoke:
        width, words = 8, 32
    shapes: list[tuple[int, ...]] = [(words, width), (1024 if width > 8 else 8, width)]
    for _ in range(layers):
        shapes += [(width,)] * 4
        shapes += [(3 * width, width), (3 * width,), (width, width), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*shapes, (width,), (width,)]


def _parameters(layers: int, plan: Plan) -> list[Tensor]:
    generator = torch.Generator(plan.device).manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, device=plan.device)
    found: list[Tensor] = []
    for shape in shapes_of(layers, plan):
        parameter = torch.nn.Parameter(draw(shape))
        parameter.grad = draw(shape)
        found.append(parameter)
    return found


def _build(name: str, layers: int, session: Session) -> Builders:
    plan = session.plan
    parameters = _parameters(layers, plan)
    initial = [parameter.detach().clone() for parameter in parameters]
    reference = MAKERS[name](parameters, foreach=False)
    for _ in range(CHECKED_STEPS):
        reference.step()
    updates = [part.detach() - old for part, old in zip(parameters, initial, strict=True)]
    prepare = functools.partial(_prepare, name, layers, session, initial, updates)
    moved = TRAFFIC[name] * sum(part.nbytes for part in initial)
    return {
        "clone": functools.partial(_clone, moved, session),
        **{
            contender: functools.partial(prepare, contender)
            for contender in ("foreach", "fused", "deepep", "inductor")
        },
    }


def _prepare(
    name: str,
    layers: int,
    session: Session,
    initial: list[Tensor],
    updates: list[Tensor],
    contender: str,
) -> Prepared:
    plan = session.plan
    parameters = _parameters(layers, plan)
    own = contender in ("foreach", "fused")
    optimizer = MAKERS[name](parameters, **({contender: True} if own else {}))
    step = optimizer.step if own else compile_as(contender, optimizer.step, plan)
    with fallbacks_of(contender) as fallbacks:
        # All of them: the first step of some is a graph of its own.
        compiling = seconds_of(
            lambda: [step() for _ in range(CHECKED_STEPS)], session.clock.synchronize
        )
    with torch.no_grad():
        got = [part.detach() - old for part, old in zip(parameters, initial, strict=True)]
        names = [f"parameter {number}" for number in range(len(got))]
        wrong = difference(got, updates, names, tolerance=TOLERANCE)
    once = {} if own else {"compile": (compiling, "s")}

    def run(_: Any = None) -> None:
        step()

    seconds = plan.pick(50, 20, 0) / 1e3
    return Prepared({"step": Timed(run, seconds=seconds)}, once, wrong, fallbacks)


def _clone(moved: int, session: Session) -> Prepared:
    source = torch.empty(max(moved // 2, 1), dtype=torch.int8, device=session.plan.device)
    timed = Timed(lambda _: source.clone(), seconds=session.plan.pick(50, 20, 0) / 1e3)
    return Prepared({"step": timed}, {"step bytes": (moved, "B")})
