"""Chains of views as one view."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deepcompile.passes.canonicalise.layout import argument, value

aten = torch.ops.aten

PERMUTES = frozenset((aten.permute.default, aten.transpose.int, aten.t.default))
#: Keep the row-major order of elements; between contiguous tensors all of them are `view`.
RESHAPES = frozenset(
    (
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
    )
)
_SIZED = frozenset((aten.view.default, aten.reshape.default, aten._unsafe_view.default))


def permutation(node: Node) -> tuple[int, ...] | None:
    """The input dimension of each output dimension of a node of `PERMUTES`."""
    tensor = value(node)
    if tensor is None:
        return None
    rank = tensor.dim()
    order = list(range(rank))
    if node.target is aten.permute.default:
        return tuple([dim % rank for dim in argument(node, 1, "dims")])
    if rank < 2:
        return tuple(order)
    first, second = 0, 1
    if node.target is aten.transpose.int:
        first, second = argument(node, 1, "dim0") % rank, argument(node, 2, "dim1") % rank
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def compose(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that does `inner`, then `outer`."""
    return tuple([inner[dim] for dim in outer])


def is_identity(order: tuple[int, ...]) -> bool:
    """Whether a permutation leaves every dimension where it is."""
    return order == tuple(range(len(order)))


def size_argument(node: Node) -> Any:
    """The `size` of one `view` or `expand` that has the shape of `node`; None if not at hand."""
    tensor = value(node)
    if tensor is None:
        return None
    if all(type(size) is int for size in tensor.shape):
        return [int(size) for size in tensor.shape]
    if node.target in _SIZED:
        return argument(node, 1, "size" if node.target is not aten.reshape.default else "shape")
    if node.target is aten.expand.default:
        size = argument(node, 1, "size")
        return None if any(type(part) is int and part == -1 for part in size) else size
    return None
