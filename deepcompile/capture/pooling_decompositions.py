"""Pooling over small windows, unrolled: one slice of the padded input for each place of a window.

Average pooling is a sum of slices and its gradient a sum of gathered output gradients; maximum
pooling is a running maximum that carries the place it was found at. Each becomes one kernel.
Large windows, symbolic sizes and integers are left to ATen, and so is the gradient of maximum
pooling, which scatters to places that depend on data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcompile.capture.norm_decompositions import narrow, widen

aten = torch.ops.aten

LARGEST_WINDOW = 32
"""Up to so many places a window is unrolled."""


@dataclass(frozen=True)
class _Windows:
    """Where the windows over the last dims lie; all fields have one entry a dim."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    outputs: tuple[int, ...]

    def padded(self, x: Tensor, value: float) -> Tensor:
        """`x` with the border that the windows reach into."""
        pads: list[int] = []
        for dim in reversed(range(len(self.sizes))):
            reach = (self.outputs[dim] - 1) * self.stride[dim]
            reach += (self.kernel[dim] - 1) * self.dilation[dim] + 1
            pads += [self.padding[dim], max(reach - self.padding[dim] - self.sizes[dim], 0)]
        return aten.constant_pad_nd.default(x, pads, value) if any(pads) else x

    def places(self) -> list[tuple[int, ...]]:
        """The places of a window, row-major."""
        return list(itertools.product(*map(range, self.kernel)))

    def slice(self, padded: Tensor, place: tuple[int, ...]) -> Tensor:
        """What all windows see at one of their places."""
        first = padded.dim() - len(place)
        for dim, at in enumerate(place):
            start = at * self.dilation[dim]
            stop = start + (self.outputs[dim] - 1) * self.stride[dim] + 1
            padded = aten.slice.Tensor(padded, first + dim, start, stop, self.stride[dim])
        return padded


def _each(value: Sequence[int], dims: int, otherwise: Sequence[int]) -> tuple[int, ...]:
    given = tuple(value) or tuple(otherwise)
    return given * dims if len(given) == 1 else given


def _windows(
    x: Tensor,
    dims: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> _Windows | None:
    """The windows, or None where they are not unrolled."""
    if not x.is_floating_point() or any(not isinstance(size, int) for size in x.shape):
        return None
    kernel = _each(kernel, dims, kernel)
    stride = _each(stride, dims, kernel)
    padding, dilation = _each(padding, dims, (0,)), _each(dilation, dims, (1,))
    if math.prod(kernel) > LARGEST_WINDOW or x.numel() == 0:
        return None
    sizes = tuple(x.shape[-dims:])
    outputs = []
    for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        room = size + 2 * p - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= size + p:
            count -= 1
        outputs.append(count)
    if min(outputs) < 1:
        return None
    return _Windows(sizes, kernel, stride, padding, dilation, tuple(outputs))


def _divisor(
    windows: _Windows, like: Tensor, include_padding: bool, override: int | None
) -> Tensor | float:
    """How many elements the average of each window is over."""
    if override is not None:
        return float(override)
    total: Tensor | float = 1.0
    dims = len(windows.sizes)
    for dim in range(dims):
        size, padding = windows.sizes[dim], windows.padding[dim]
        kernel, stride, outputs = windows.kernel[dim], windows.stride[dim], windows.outputs[dim]
        last = (outputs - 1) * stride - padding + kernel
        if (include_padding or padding == 0) and last <= size + padding:
            total = total * kernel
            continue
        start = torch.arange(outputs, device=like.device) * stride - padding
        stop = (start + kernel).clamp(max=size + padding)
        if not include_padding:
            start, stop = start.clamp(min=0), stop.clamp(max=size)
        count = (stop - start).to(like.dtype)
        total = count.view([-1] + [1] * (dims - 1 - dim)) * total
    return total


def _avg_pool(dims: int) -> Callable[..., Any]:
    def avg_pool(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        windows = _windows(x, dims, kernel_size, stride, padding, (1,), ceil_mode)
        if windows is None:
            return NotImplemented
        padded = windows.padded(widen(x), 0.0)
        total: Any = None
        for place in windows.places():
            seen = windows.slice(padded, place)
            total = seen if total is None else total + seen
        total = total / _divisor(windows, total, count_include_pad, divisor_override)
        return narrow(total, x.dtype)

    return avg_pool


def _avg_pool_backward(dims: int) -> Callable[..., Any]:
    def avg_pool_backward(
        grad: Tensor,
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Tensor:
        windows = _windows(x, dims, kernel_size, stride, padding, (1,), ceil_mode)
        if windows is None:
            return NotImplemented
        wide = widen(grad)
        share = wide / _divisor(windows, wide, count_include_pad, divisor_override)
        # An element lies in the window that starts last before it and in some before that one.
        nearest: list[list[Tensor]] = []
        inside: list[list[Tensor]] = []
        for dim in range(dims):
            shape = [-1] + [1] * (dims - 1 - dim)
            at = torch.arange(windows.sizes[dim], device=x.device) + windows.padding[dim]
            last = torch.div(at, windows.stride[dim], rounding_mode="floor")
            nearest.append([])
            inside.append([])
            for back in range(-(-windows.kernel[dim] // windows.stride[dim])):
                window = last - back
                within = (window >= 0) & (window < windows.outputs[dim])
                within = within & (window * windows.stride[dim] + windows.kernel[dim] > at)
                window = window.clamp(0, windows.outputs[dim] - 1)
                nearest[-1].append(window.view(shape))
                inside[-1].append(within.view(shape))
        total: Any = None
        keep: list[Tensor | None] = [None] * (x.dim() - dims)
        counts = [range(len(choices)) for choices in nearest]
        for choice in itertools.product(*counts):
            index = [nearest[dim][at] for dim, at in enumerate(choice)]
            mask = inside[0][choice[0]]
            for dim in range(1, dims):
                mask = mask & inside[dim][choice[dim]]
            part = aten.index.Tensor(share, [*keep, *index])
            part = aten.where.ScalarOther(mask, part, 0.0)
            total = part if total is None else total + part
        return narrow(total, x.dtype)

    return avg_pool_backward


def _max_pool(dims: int) -> Callable[..., Any]:
    def max_pool(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[Tensor, Tensor]:
        windows = _windows(x, dims, kernel_size, stride, padding, dilation, ceil_mode)
        if windows is None:
            return NotImplemented
        padded = windows.padded(x, -math.inf)
        starts = _starts(windows, x)
        best: Any = None
        for place in windows.places():
            seen = windows.slice(padded, place)
            found = _linear(windows, starts, place)
            if best is None:
                # A window in which nothing is larger than minus infinity gives its first place.
                best, where = seen, found.expand(seen.shape)
                continue
            larger = (seen > best) | aten.isnan.default(seen)
            # A place in the padding is chosen only where all before it were in the padding too.
            larger = larger | (_inside(windows, starts, place) & (where < 0))
            best = torch.where(larger, seen, best)
            where = torch.where(larger, found, where)
        return best.clone(), where.clone()

    return max_pool


def _starts(windows: _Windows, like: Tensor) -> list[Tensor]:
    """Per dim where windows start, shaped to broadcast; negative in the padding."""
    dims = len(windows.sizes)
    return [
        (
            torch.arange(windows.outputs[dim], device=like.device) * windows.stride[dim]
            - windows.padding[dim]
        ).view([-1] + [1] * (dims - 1 - dim))
        for dim in range(dims)
    ]


def _inside(windows: _Windows, starts: list[Tensor], place: tuple[int, ...]) -> Tensor:
    mask: Any = None
    for dim, at in enumerate(place):
        position = starts[dim] + at * windows.dilation[dim]
        within = (position >= 0) & (position < windows.sizes[dim])
        mask = within if mask is None else mask & within
    return mask


def _linear(windows: _Windows, starts: list[Tensor], place: tuple[int, ...]) -> Tensor:
    """The linear position of a place of each window in the unpadded input; -1 in the padding."""
    linear: Any = 0
    for dim, at in enumerate(place):
        linear = linear * windows.sizes[dim] + (starts[dim] + at * windows.dilation[dim])
    return aten.where.ScalarOther(_inside(windows, starts, place), linear, -1)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.avg_pool2d.default: _avg_pool(2),
    aten.avg_pool3d.default: _avg_pool(3),
    aten.avg_pool2d_backward.default: _avg_pool_backward(2),
    aten.avg_pool3d_backward.default: _avg_pool_backward(3),
    aten.max_pool2d_with_indices.default: _max_pool(2),
    aten.max_pool3d_with_indices.default: _max_pool(3),
}
