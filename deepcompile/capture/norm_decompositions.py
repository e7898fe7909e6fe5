"""LayerNorm, RMSNorm, GroupNorm and BatchNorm in row form, forward and backward.

Each forward is one `var_mean` (or one mean of squares) and a pointwise tail; each backward is two
row means, a pointwise tail and column sums for the affine gradients. What the backward needs from
the forward is the input and one or two numbers a row, so each becomes one kernel forward and one
backward. Half-precision inputs are widened by an explicit cast, computed in float32 and rounded
once at the end; row statistics stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_HALF = (torch.bfloat16, torch.float16)


def widen(x: Tensor) -> Tensor:
    """`x` in the type that row arithmetic is done in: float32 for half precision, else its own."""
    return x.to(torch.float32) if x.dtype in _HALF else x


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` rounded to `dtype`; no node at all where it has that type."""
    return x if x.dtype == dtype else x.to(dtype)


def _inner_dims(x: Tensor, normalized_shape: Sequence[int]) -> list[int]:
    return list(range(x.dim() - len(normalized_shape), x.dim()))


def _sum_outer(x: Tensor, inner: Sequence[int]) -> Tensor:
    """Column sums: reduce every dimension before the normalised ones."""
    outer = list(range(x.dim() - len(inner)))
    return aten.sum.dim_IntList(x, outer) if outer else x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * widen(weight)
    if bias is not None:
        x = x + widen(bias)
    return x


def _grad_through_statistics(
    grad_hat: Tensor, x_hat: Tensor, rstd: Tensor, dims: list[int]
) -> Tensor:
    """Gradient of `(x - mean(x)) * rstd` over `dims`, from that of the normalised value."""
    mean_grad = aten.mean.dim(grad_hat, dims, True)
    mean_grad_x = aten.mean.dim(grad_hat * x_hat, dims, True)
    return (grad_hat - mean_grad - x_hat * mean_grad_x) * rstd


def native_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = widen(x)
    var, mean = aten.var_mean.correction(
        wide, _inner_dims(x, normalized_shape), correction=0, keepdim=True
    )
    rstd = aten.rsqrt.default(var + eps)
    y = _affine((wide - mean) * rstd, weight, bias)
    return narrow(y, x.dtype), mean, rstd


def native_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    inner = _inner_dims(x, normalized_shape)
    wide_grad = widen(grad)
    rstd = widen(rstd)
    x_hat = (widen(x) - widen(mean)) * rstd
    grad_x = grad_weight = grad_bias = None
    if output_mask[0]:
        grad_hat = wide_grad if weight is None else wide_grad * widen(weight)
        grad_x = narrow(_grad_through_statistics(grad_hat, x_hat, rstd, inner), x.dtype)
    if output_mask[1] and weight is not None:
        grad_weight = narrow(_sum_outer(wide_grad * x_hat, inner), weight.dtype)
    if output_mask[2] and bias is not None:
        grad_bias = narrow(_sum_outer(wide_grad, inner), bias.dtype)
    return grad_x, grad_weight, grad_bias


def fused_rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    wide = widen(x)
    if eps is None:
        eps = torch.finfo(wide.dtype).eps
    square = aten.mean.dim(wide * wide, _inner_dims(x, normalized_shape), True)
    rstd = aten.rsqrt.default(square + eps)
    return narrow(_affine(wide * rstd, weight, None), x.dtype), rstd


def fused_rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    inner = _inner_dims(x, normalized_shape)
    wide_grad = widen(grad)
    rstd = widen(rstd)
    x_hat = widen(x) * rstd
    grad_x = grad_weight = None
    if output_mask[0]:
        grad_hat = wide_grad if weight is None else wide_grad * widen(weight)
        mean_grad_x = aten.mean.dim(grad_hat * x_hat, inner, True)
        grad_x = narrow((grad_hat - x_hat * mean_grad_x) * rstd, x.dtype)
    if output_mask[1] and weight is not None:
        grad_weight = narrow(_sum_outer(wide_grad * x_hat, inner), weight.dtype)
    return grad_x, grad_weight


def native_group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    per_group = channels // groups
    wide = widen(x).reshape(batch, groups, per_group, positions)
    var, mean = aten.var_mean.correction(wide, [2, 3], correction=0, keepdim=True)
    rstd = aten.rsqrt.default(var + eps)
    y = (wide - mean) * rstd
    if weight is not None:
        y = y * widen(weight).view(1, groups, per_group, 1)
    if bias is not None:
        y = y + widen(bias).view(1, groups, per_group, 1)
    return (
        narrow(y.reshape(x.shape), x.dtype),
        mean.view(batch, groups),
        rstd.view(batch, groups),
    )


def native_group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    positions: int,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    per_group = channels // groups
    shape = (batch, groups, per_group, positions)
    wide_grad = widen(grad).reshape(shape)
    rstd = widen(rstd).view(batch, groups, 1, 1)
    x_hat = (widen(x).reshape(shape) - widen(mean).view(batch, groups, 1, 1)) * rstd
    grad_x = grad_weight = grad_bias = None
    if output_mask[0]:
        grad_hat = wide_grad
        if weight is not None:
            grad_hat = wide_grad * widen(weight).view(1, groups, per_group, 1)
        grad_x = _grad_through_statistics(grad_hat, x_hat, rstd, [2, 3])
        grad_x = narrow(grad_x.reshape(x.shape), x.dtype)
    affine_dtype = x.dtype if weight is None else weight.dtype
    if output_mask[1]:
        columns = aten.sum.dim_IntList(wide_grad * x_hat, [0, 3])
        grad_weight = narrow(columns.reshape(channels), affine_dtype)
    if output_mask[2]:
        columns = aten.sum.dim_IntList(wide_grad, [0, 3])
        grad_bias = narrow(columns.reshape(channels), affine_dtype)
    return grad_x, grad_weight, grad_bias


def _channel_dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    """A vector over channels, shaped to broadcast against `x` (batch, channels, ...)."""
    return widen(value).view([1, -1] + [1] * (x.dim() - 2))


def _batch_norm_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, mean, reciprocal deviation and (biased) variance, the last three by channel."""
    wide = widen(x)
    dims = _channel_dims(x)
    var, mean = aten.var_mean.correction(wide, dims, correction=0, keepdim=True)
    rstd = aten.rsqrt.default(var + eps)
    y = (wide - mean) * rstd
    if weight is not None:
        y = y * _per_channel(weight, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    channels = x.shape[1]
    return narrow(y, x.dtype), mean.view(channels), rstd.view(channels), var.view(channels)


def _batch_norm_eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> Tensor:
    rstd = aten.rsqrt.default(widen(running_var) + eps)
    y = (widen(x) - _per_channel(running_mean, x)) * _per_channel(rstd, x)
    if weight is not None:
        y = y * _per_channel(weight, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    return narrow(y, x.dtype)


def _moved(running: Tensor, batch_value: Tensor, momentum: float) -> Tensor:
    moved = widen(running) * (1 - momentum) + batch_value * momentum
    return narrow(moved, running.dtype)


def native_batch_norm_functional(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not training:
        y = _batch_norm_eval(x, weight, bias, running_mean, running_var, eps)
        empty = x.new_empty((0,))
        return y, empty, empty, running_mean, running_var
    y, mean, rstd, var = _batch_norm_train(x, weight, bias, eps)
    count = x.numel() / x.shape[1]
    unbiased = var * (count / (count - 1))
    return (
        y,
        mean,
        rstd,
        _moved(running_mean, mean, momentum),
        _moved(running_var, unbiased, momentum),
    )


def native_batch_norm_no_training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y = _batch_norm_eval(x, weight, bias, running_mean, running_var, eps)
    return y, x.new_empty((0,)), x.new_empty((0,))


def native_batch_norm_no_stats(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd, _ = _batch_norm_train(x, weight, bias, eps)
    return y, mean, rstd


def native_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_rstd: Tensor | None,
    training: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dims = _channel_dims(x)
    wide_grad = widen(grad)
    if training:
        assert save_mean is not None
        assert save_rstd is not None
        mean, rstd = _per_channel(save_mean, x), _per_channel(save_rstd, x)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean = _per_channel(running_mean, x)
        rstd = _per_channel(aten.rsqrt.default(widen(running_var) + eps), x)
    grad_x = grad_weight = grad_bias = None
    x_hat = (widen(x) - mean) * rstd
    if output_mask[0]:
        grad_hat = wide_grad if weight is None else wide_grad * _per_channel(weight, x)
        if training:
            grad_x = _grad_through_statistics(grad_hat, x_hat, rstd, dims)
        else:
            grad_x = grad_hat * rstd
        grad_x = narrow(grad_x, x.dtype)
    affine_dtype = x.dtype if weight is None else weight.dtype
    if output_mask[1]:
        grad_weight = narrow(aten.sum.dim_IntList(wide_grad * x_hat, dims), affine_dtype)
    if output_mask[2]:
        grad_bias = narrow(aten.sum.dim_IntList(wide_grad, dims), affine_dtype)
    return grad_x, grad_weight, grad_bias


FORWARD: dict[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: native_layer_norm,
    aten._fused_rms_norm.default: fused_rms_norm,
    aten.native_group_norm.default: native_group_norm,
    aten._native_batch_norm_legit_functional.default: native_batch_norm_functional,
    aten._native_batch_norm_legit_no_training.default: native_batch_norm_no_training,
    aten._native_batch_norm_legit.no_stats: native_batch_norm_no_stats,
}

BACKWARD: dict[Any, Callable[..., Any]] = {
    aten.native_layer_norm_backward.default: native_layer_norm_backward,
    aten._fused_rms_norm_backward.default: fused_rms_norm_backward,
    aten.native_group_norm_backward.default: native_group_norm_backward,
    aten.native_batch_norm_backward.default: native_batch_norm_backward,
}
