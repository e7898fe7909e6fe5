"""Forward and backward of LayerNorm, RMSNorm, softmax and cross-entropy, fp32."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks._measure import (
    Check,
    Measurement,
    Plan,
    SuiteResult,
    alternate,
    compile_with,
    geometric_mean,
    paired_ratio,
)

LIMIT = 1.3


@dataclass(frozen=True)
class RowCase:
    """A function of float inputs that need gradients and of integer inputs that do not."""

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    headline: bool = True  # counts towards the geometric mean


def cases() -> list[RowCase]:
    """The functions at the sizes of the promise, and two more that are shown only."""
    torch.manual_seed(0)
    rows, columns, classes = 2048, 1024, 8192
    x = torch.randn(rows, columns)
    weight, bias = torch.randn(columns), torch.randn(columns)
    targets = torch.randint(columns, (rows,))
    logits = torch.randn(rows // 2, classes)
    labels = torch.randint(classes, (rows // 2,))
    return [
        RowCase("layer_norm", _layer_norm, (x, weight, bias)),
        RowCase("rms_norm", _rms_norm, (x, weight)),
        RowCase("rms_norm_hf", _rms_norm_hf, (x, weight), headline=False),
        RowCase("softmax", _softmax, (x,)),
        RowCase("cross_entropy", functional.cross_entropy, (x, targets)),
        RowCase("cross_entropy_8192", functional.cross_entropy, (logits, labels), headline=False),
    ]


def run(plan: Plan) -> SuiteResult:
    """Median of one forward and backward, and how often deepep fits into Inductor's time."""
    measurements: list[Measurement] = []
    headline: list[float] = []
    details: dict[str, float] = {}
    for case in cases():
        samples = _time_case(case, plan)
        measurements += [
            Measurement(f"{case.name}/{backend}", statistics.median(values), "s", tuple(values))
            for backend, values in samples.items()
        ]
        if {"inductor", "deepep"} <= samples.keys():
            details[case.name] = paired_ratio(samples["inductor"], samples["deepep"])
            if case.headline:
                headline.append(details[case.name])
    checks = ()
    if headline:
        mean = geometric_mean(headline)
        checks = (Check("geometric mean: inductor / deepep", mean, ">=", LIMIT),)
    notes = (
        "2048 x 1024, and 1024 x 8192 for cross_entropy_8192; forward and backward",
        "the geometric mean is over layer_norm, rms_norm, softmax and cross_entropy",
        "details: inductor / deepep, the median over paired rounds",
    )
    return SuiteResult("rows", tuple(measurements), checks, notes, details)


def _time_case(case: RowCase, plan: Plan) -> dict[str, list[float]]:
    torch._dynamo.reset()
    contenders = {
        backend: _forward_and_backward(case, compile_with(case.function, backend))
        for backend in plan.backends
    }
    return alternate(
        contenders, rounds=plan.pick(15, 5), seconds=0.02 * plan.pick(10, 5), warmup=10
    )


def _forward_and_backward(case: RowCase, function: Callable[..., Tensor]) -> Callable[[], object]:
    inputs = [
        tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in case.inputs
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    upstream = torch.randn_like(case.function(*case.inputs))

    def call() -> object:
        return torch.autograd.grad(function(*inputs), wanted, upstream)

    return call


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-5)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, eps=1e-6)


def _rms_norm_hf(x: Tensor, weight: Tensor) -> Tensor:
    """As the models of `transformers` spell it."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=-1)
