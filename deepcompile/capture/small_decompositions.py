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


def copy(destination: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What `destination` holds after `destination.copy_(source)`."""
    expanded = source.expand(destination.shape)
    return expanded.clone() if source.dtype == destination.dtype else expanded.to(destination.dtype)


PAIRS_OF_A_SHORT_SCAN = 1 << 22
"""Up to so many pairs of positions a running sum is taken as a masked sum over pairs."""


def cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Short running sums (position ids, segment numbers) as sums over the positions before.

    The work grows with the square of the length, so long ones are left to ATen's scan.
    """
    if x.dim() == 0 or any(not isinstance(size, int) for size in x.shape):
        return NotImplemented
    dim = dim % x.dim()
    length = x.shape[dim]
    if x.is_floating_point() or x.is_complex() or x.numel() * length > PAIRS_OF_A_SHORT_SCAN:
        return NotImplemented
    last = x.movedim(dim, -1)
    at = torch.arange(length, device=x.device)
    before = at <= at.unsqueeze(-1)
    terms = torch.where(before, last.unsqueeze(-2), 0)
    return terms.sum(-1, dtype=dtype or torch.int64).movedim(-1, dim).contiguous()


def largest(x: Tensor) -> Tensor:
    return aten.amax.default(x, [])


def smallest(x: Tensor) -> Tensor:
    return aten.amin.default(x, [])


def round_decimals(x: Tensor, *, decimals: int) -> Tensor:
    scale = 10.0 ** abs(decimals)
    if decimals == 0:
        return aten.round.default(x)
    if decimals > 0:
        return aten.round.default(x * scale) / scale
    return aten.round.default(x / scale) * scale


def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    return aten.ne.Tensor(aten.ne.Scalar(x, 0), aten.ne.Scalar(y, 0))


def addmv(x: Tensor, matrix: Tensor, vector: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    product = (matrix * vector).sum(-1)
    if alpha != 1:
        product = product * alpha
    # With beta 0 not even NaN in x counts.
    return product if beta == 0 else product + (x if beta == 1 else x * beta)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.pow.Tensor_Scalar: pow_scalar,
    aten.native_dropout_backward.default: native_dropout_backward,
    aten.copy.default: copy,
    aten.max.default: largest,
    aten.min.default: smallest,
    aten.round.decimals: round_decimals,
    aten.logical_xor.default: logical_xor,
    aten.addmv.default: addmv,
    aten.cumsum.default: cumsum,
}
