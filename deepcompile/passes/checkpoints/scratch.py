"""Memory that operators of ATen take and give back inside their calls.

On a CPU a convolution of tensors that are not channels-last has oneDNN's copies of them in blocks
of channels, as many as a vector register holds floats: forward those of input, weight and result,
and then of the result in both forms; backward those of input, weight and gradient, with strides
also the input's gradient in both forms. A transposed convolution with strides has its result twice
more. With one thread ATen computes small batches of plain 1 x 1 filters in float32 by itself, with
no memory beside the results. Compared with torch's allocator over thirty shapes that is right to a
few percent, but for inputs of few channels or few pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten


def scratch_of(node: Node, nbytes: Callable[[Node], int]) -> int:
    """Bytes that a node's call takes beside its results.

    Args:
        node: of a graph of ATen.
        nbytes: of the tensor that a node is.
    """
    if node.target is aten.convolution.default:
        source, weight = _nodes(node, 2)
        if _is_copied(source) and not _is_plain_product(node, source, weight):
            whole = int(nbytes(node) * _padding(node))
            window = _window(node)
            if window.transposed and window.is_strided:
                return 2 * whole
            return max(nbytes(source) + nbytes(weight) + whole - nbytes(node), whole)
    elif node.target is aten.convolution_backward.default:
        gradient, source, weight = _nodes(node, 3)
        if _is_copied(source) and not _is_plain_product(node, source, weight):
            copied = int(nbytes(gradient) * _padding(gradient)) + nbytes(weight)
            if node.meta["val"][0] is not None and _window(node).is_strided:
                copied = max(copied, nbytes(source) - nbytes(weight))
            return nbytes(source) + copied
    return 0


def _padding(node: Node) -> float:
    """How much more a tensor takes in blocks of channels."""
    channels = node.meta["val"].shape[1]
    if not isinstance(channels, int):
        return 1.0
    block = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
    return -(-channels // block) * block / channels


def _nodes(node: Node, count: int) -> list[Node]:
    found: Any = node.args[:count]
    return list(found)


@dataclass(frozen=True)
class _Window:
    """How a convolution goes over its input."""

    strides: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    groups: int

    @property
    def is_strided(self) -> bool:
        return max(self.strides) > 1


def _window(node: Node) -> _Window:
    backward = node.target is aten.convolution_backward.default
    strides, padding, dilation, transposed, _, groups = node.args[3 + backward : 9 + backward]
    window: Any = strides, padding, dilation, bool(transposed), groups
    return _Window(*window)


_FEW = 16
"""Of fewer images ATen computes 1 x 1 filters without oneDNN when it has one thread."""


def _is_plain_product(node: Node, source: Node, weight: Node) -> bool:
    window, value = _window(node), source.meta["val"]
    filters = weight.meta["val"].shape[2:]
    return (
        torch.get_num_threads() == 1
        and value.dtype == torch.float32
        and isinstance(value.shape[0], int)
        and value.shape[0] < _FEW
        and len(filters) == 2
        and max(filters) == 1
        and window.groups == 1
        and not window.transposed
        and max(*window.strides, *window.dilation) == 1
        and max(window.padding) == 0
    )


def _is_copied(source: Node) -> bool:
    value = source.meta["val"]
    if value.device.type != "cpu":
        return False
    return value.dim() < 4 or not value.is_contiguous(memory_format=torch.channels_last)
