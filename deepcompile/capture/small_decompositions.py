"""Single ops in terms of the pointwise ops and reductions of the kernel builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def pow_scalar(x: Tensor, exponent: float) -> Tensor:
    """Small exponents as ATen computes them, which the derivative formulas produce in plenty."""
    if isinstance(exponent, torch.SymInt | torch.SymFloat) or not x.is_floating_point():
        return NotImplemented
    if exponent == 1:
        return x.clone()
    if exponent == 2:
        return x * x
    if exponent == 3:
        return x * x * x
    if exponent == 0.5:
        return aten.sqrt.default(x)
    if exponent == -0.5:
        return aten.rsqrt.default(x)
    if exponent == -1:
        return aten.reciprocal.default(x)
    return NotImplemented


def native_dropout_backward(grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    return grad * (mask.to(grad.dtype) * scale)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.pow.Tensor_Scalar: pow_scalar,
    aten.native_dropout_backward.default: native_dropout_backward,
}
