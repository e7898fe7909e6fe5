"""Copies of tensors as they lie, also of expanded ones, whose elements share memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Overlapping(Exception):
    """Elements share memory in another way than by a stride of 0."""


def empty_as(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Memory for a tensor with the same strides."""
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device or tensor.device
    )


def copy_as_it_lies(target: Tensor, source: Tensor) -> Tensor:
    """Copy between tensors of the same strides, what they repeat once only.

    Raises:
        Overlapping: when that is not enough to write each element of the target once.
    """
    if target.numel():
        if torch._debug_has_internal_overlap(target):
            target_once, source = once(target), once(source)
            if torch._debug_has_internal_overlap(target_once):
                raise Overlapping(f"strides {target.stride()} of sizes {tuple(target.shape)}")
            target_once.copy_(source)
        else:
            target.copy_(source)
    return target


def once(tensor: Tensor) -> Tensor:
    """What an expanded tensor repeats."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
