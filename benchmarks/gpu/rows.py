"""Row kernels, forward and backward, as percent of what `torch.clone` reaches on as many bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contenders import (
    Builders,
    Prepared,
    compile_as,
    difference,
    fallbacks_of,
    liger,
)
from benchmarks.gpu.harness import Case, Session
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.row_ops import OPS, RowOp, dropout_error
from benchmarks.gpu.timing import Timed

FEW = 64
TOLERANCE = 2e-2  # of norms: bf16 rounds each number by up to 0.4 %, eager's steps several times

# Columns, whether rows are many, whether Inductor's autotuning takes part: it takes long.
# What tells most comes first, since the budget may not last.
SHAPES = (
    (4096, True, True),
    (32768, True, True),
    (131072, True, False),
    (131072, False, True),
    (4096, False, False),
    (1024, True, False),
    (16384, True, False),
    (1024, False, False),
    (65536, True, False),
    (32768, False, False),
    (16384, False, False),
    (65536, False, False),
)
NOTES = (
    "bf16; percent of clone: the time of torch.clone on as many bytes, in the same rounds, over"
    " the contender's",
    "bytes are the least there is: each input and each output once; the L2 cache is flushed before"
    " each call, and launches are queued ahead, so that they cost nothing",
    f"few rows are {FEW}; many make 256 MiB a tensor on a large card",
    "inductor-max (max-autotune-no-cudagraphs) takes part at some shapes only: it compiles long",
)


def cases(session: Session) -> Iterator[Case]:
    """All functions at the first shape, then those with reductions at the others, then the rest."""
    plan = session.plan
    shapes = [(16, True, True), (48, False, False)] if plan.smoke else list(SHAPES)
    if plan.quick:
        shapes = shapes[:1]
    ops = (OPS[0], OPS[-1]) if plan.smoke and plan.quick else OPS
    order = [(op, shapes[0]) for op in ops]
    for reduces in (True, False):
        order += [(op, shape) for shape in shapes[1:] for op in ops if op.reduces == reduces]
    for op, (columns, many, tuned) in order:
        rows = max(plan.elements // columns, 1) if many else min(FEW, plan.elements // columns)
        build = functools.partial(_build, op, rows, columns, tuned, session)
        yield Case(f"{op.name} {rows}x{columns}", build, plan.pick(25, 5, 2))


def _build(op: RowOp, rows: int, columns: int, tuned: bool, session: Session) -> Builders:
    plan = session.plan
    torch.manual_seed(0)
    make = functools.partial(torch.randn, device=plan.device, dtype=torch.bfloat16)
    inputs = op.inputs(rows, columns, make)
    expected, upstream = _expected(op, inputs)

    def prepare(name: str, function: Callable[..., Any]) -> Prepared:
        compiled = compile_as(name, function, plan) if name != "liger" else function
        return _prepare(op, name, compiled, inputs, upstream, expected)

    builders: dict[str, Callable[[], Prepared]] = {
        "clone": functools.partial(_clones, op, inputs, upstream, plan)
    }
    for name in ("eager", "deepep", "inductor", *(["inductor-max"] if tuned else [])):
        builders[name] = functools.partial(prepare, name, op.function)
    if op.liger is not None and not plan.smoke:
        function, arguments = liger(op.liger[0]), op.liger[1]
        if function is not None:
            builders["liger"] = functools.partial(
                prepare, "liger", lambda *given: function(*arguments(*given))
            )
    return builders


def _expected(op: RowOp, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients by eager in float32, and the gradients that come from above."""
    wide = [
        tensor.float().requires_grad_(number in op.differentiated)
        if tensor.is_floating_point()
        else tensor
        for number, tensor in enumerate(inputs)
    ]
    outputs = _as_tuple(op.function(*wide))
    upstream = [
        # A loss gets one, whose dtype is that of the loss: float32.
        torch.randn_like(output).to(torch.bfloat16) if output.ndim else torch.ones_like(output)
        for output in outputs
    ]
    wanted = [wide[number] for number in op.differentiated]
    gradients = torch.autograd.grad(outputs, wanted, [part.float() for part in upstream])
    return [tensor.detach() for tensor in (*outputs, *gradients)], upstream


def _prepare(
    op: RowOp,
    name: str,
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor],
    expected: Sequence[Tensor],
) -> Prepared:
    given = [
        # Of its own: some write over their inputs.
        tensor.detach().clone().requires_grad_(number in op.differentiated)
        for number, tensor in enumerate(inputs)
    ]
    wanted = [given[number] for number in op.differentiated]

    above: list[Tensor] = []

    def forward(_: Any = None) -> tuple[Tensor, ...]:
        return _as_tuple(function(*given))

    def backward(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, wanted, above)

    with fallbacks_of(name) as fallbacks:
        outputs = forward()
        # The dtype of a loss differs between contenders.
        above += [part.to(out.dtype) for part, out in zip(upstream, outputs, strict=True)]
        gradients = backward(outputs)
    if op.name == "dropout_residual":
        with torch.no_grad():
            wrong = dropout_error(tuple(inputs), outputs[0], gradients[0], upstream[0])
    else:
        names = [f"output {number}" for number in range(len(outputs))]
        names += [f"gradient of input {number}" for number in op.differentiated]
        with torch.no_grad():
            wrong = difference((*outputs, *gradients), expected, names, tolerance=TOLERANCE)
    timed = {"forward": Timed(forward), "backward": Timed(backward, forward)}
    return Prepared(timed, wrong=wrong, fallbacks=fallbacks)


def _clones(
    op: RowOp, inputs: Sequence[Tensor], upstream: Sequence[Tensor], plan: Plan
) -> Prepared:
    """Copies that move as many bytes as forward and backward must."""
    above = sum(part.nbytes for part in upstream)
    forward = sum(tensor.nbytes for tensor in inputs) + above  # outputs are as large as upstream
    backward = above + sum(inputs[number].nbytes for number in op.read_back)
    backward += sum(inputs[number].nbytes for number in op.written_back)
    prepared = Prepared({})
    for metric, moved in (("forward", forward), ("backward", backward)):
        source = torch.empty(max(moved // 2, 1), dtype=torch.int8, device=plan.device)
        prepared.timed = {**prepared.timed, metric: Timed(functools.partial(_clone, source))}
        prepared.once[f"{metric} bytes"] = (moved, "B")
    return prepared


def _clone(source: Tensor, _: Any) -> Tensor:
    return source.clone()


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
