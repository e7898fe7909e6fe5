"""Memory that operators of ATen take and give back inside their calls.

On a CPU a convolution of tensors that are not channels-last has oneDNN's copies of them in blocks
of channels: forward those of input, weight and result, and then of the result in both forms;
backward those of input, weight and gradient, with strides also the input's gradient in both forms.
Compared with torch's allocator over thirteen shapes that is right to a few percent, but for inputs
of few channels.
"""

from __future__ import annotations

from collections.abc import Callable
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
        if _is_copied(source):
            return max(nbytes(source) + nbytes(weight), nbytes(node))
    elif node.target is aten.convolution_backward.default:
        gradient, source, weight = _nodes(node, 3)
        if _is_copied(source):
            copied = nbytes(gradient) + nbytes(weight)
            if node.meta["val"][0] is not None and max(_strides(node)) > 1:
                copied = max(copied, nbytes(source) - nbytes(weight))
            return nbytes(source) + copied
    return 0


def _nodes(node: Node, count: int) -> list[Node]:
    found: Any = node.args[:count]
    return list(found)


def _strides(node: Node) -> list[int]:
    found: Any = node.args[4]
    return list(found)


def _is_copied(source: Node) -> bool:
    value = source.meta["val"]
    if value.device.type != "cpu":
        return False
    return value.dim() < 4 or not value.is_contiguous(memory_format=torch.channels_last)
