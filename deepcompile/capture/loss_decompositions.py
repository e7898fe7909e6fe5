"""Softmax, log-softmax and negative log-likelihood in row form, forward and backward.

Softmax keeps the maximum and the sum of a row, log-softmax the maximum and the logarithm of the
sum; the probabilities are recomputed. The log-likelihood reads its target by `gather` and its
gradient is `where(class == target, ...)`, never a scatter, so that cross-entropy and its gradient
are programs over rows of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from deepcompile.capture.norm_decompositions import narrow, widen

aten = torch.ops.aten

_NONE, _MEAN, _SUM = 0, 1, 2


def softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    wide = widen(x)
    dtype = torch.float32 if half_to_float else x.dtype
    if statically_known_true(x.numel() == 0):
        return wide.new_empty(x.shape, dtype=dtype)
    exponentials = aten.exp.default(wide - aten.amax.default(wide, [dim], True))
    y = exponentials / aten.sum.dim_IntList(exponentials, [dim], True)
    return narrow(y, dtype)


def safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax that is 0 where a row holds nothing but minus infinity (a fully masked query)."""
    wide = widen(x if dtype is None else narrow(x, dtype))
    if statically_known_true(x.numel() == 0):
        return x.new_empty(x.shape, dtype=dtype)
    largest = aten.amax.default(wide, [dim], True)
    exponentials = aten.exp.default(wide - largest)
    y = exponentials / aten.sum.dim_IntList(exponentials, [dim], True)
    y = aten.where.ScalarSelf(aten.eq.Scalar(largest, -torch.inf), 0.0, y)
    return narrow(y, dtype or x.dtype)


def softmax_backward(grad: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    wide_y = widen(y)
    product = widen(grad) * wide_y
    grad_x = product - wide_y * aten.sum.dim_IntList(product, [dim], True)
    return narrow(grad_x, input_dtype)


def log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    wide = widen(x)
    dtype = torch.float32 if half_to_float else x.dtype
    if statically_known_true(x.numel() == 0):
        return wide.new_empty(x.shape, dtype=dtype)
    # Subtracting the two terms one after the other keeps the digits that adding them would lose.
    shifted = wide - aten.amax.default(wide, [dim], True)
    log_sum = aten.log.default(aten.sum.dim_IntList(aten.exp.default(shifted), [dim], True))
    return narrow(shifted - log_sum, dtype)


def log_softmax_backward(grad: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    wide_grad = widen(grad)
    total = aten.sum.dim_IntList(wide_grad, [dim], True)
    return narrow(wide_grad - aten.exp.default(widen(y)) * total, input_dtype)


def _valid_targets(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which targets count, and targets that are classes everywhere (0 where ignored)."""
    valid = aten.ne.Scalar(target, ignore_index)
    return valid, aten.where.ScalarOther(valid, target, 0)


def nll_loss_forward(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """`x` is (classes,), or (batch, classes, ...) with one target for each remaining point."""
    class_dim = 1 if x.dim() > 1 else 0
    valid, target = _valid_targets(target, ignore_index)
    picked = aten.gather.default(x, class_dim, target.unsqueeze(class_dim)).squeeze(class_dim)
    loss = -widen(picked)
    if weight is not None:
        row_weight = aten.where.ScalarOther(valid, widen(aten.index.Tensor(weight, [target])), 0.0)
        loss = loss * row_weight
    loss = aten.where.ScalarOther(valid, loss, 0.0)
    if reduction == _NONE:
        return narrow(loss, x.dtype), loss.new_zeros(())
    if weight is not None:
        total_weight = aten.sum.default(row_weight)
    else:
        total_weight = aten.sum.default(valid, dtype=loss.dtype)
    total = aten.sum.default(loss)
    if reduction == _MEAN:
        total = total / total_weight
    return narrow(total, x.dtype), total_weight


def nll_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    class_dim = 1 if x.dim() > 1 else 0
    valid, target = _valid_targets(target, ignore_index)
    row = -widen(grad)
    if reduction == _MEAN:
        row = row / widen(total_weight)
    if weight is not None:
        row = row * widen(aten.index.Tensor(weight, [target]))
    row = aten.where.ScalarOther(valid, row, 0.0)
    classes = torch.arange(x.shape[class_dim], device=x.device)
    classes = classes.view([-1] + [1] * (x.dim() - class_dim - 1))
    hit = aten.eq.Tensor(classes, target.unsqueeze(class_dim))
    return narrow(aten.where.ScalarOther(hit, row.unsqueeze(class_dim), 0.0), x.dtype)


TABLE: dict[Any, Callable[..., Any]] = {
    aten._softmax.default: softmax,
    aten._safe_softmax.default: safe_softmax,
    aten._softmax_backward_data.default: softmax_backward,
    aten._log_softmax.default: log_softmax,
    aten._log_softmax_backward_data.default: log_softmax_backward,
    aten.nll_loss_forward.default: nll_loss_forward,
    aten.nll_loss_backward.default: nll_loss_backward,
    aten.nll_loss2d_forward.default: nll_loss_forward,
    aten.nll_loss2d_backward.default: nll_loss_backward,
}
