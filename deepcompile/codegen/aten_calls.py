"""What a program calls in place of an operator of ATen, for results and offsets of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ..passes.lowering.shapes import args_of, argument, size_index
from .steps import SizeRef

aten = torch.ops.aten

OUT_VARIANTS: dict[Any, Any] = {
    aten.mm.default: aten.mm.out,
    aten.addmm.default: aten.addmm.out,
    aten.bmm.default: aten.bmm.out,
    aten.baddbmm.default: aten.baddbmm.out,
}
"""Operators that write to memory of ours as well as of their own."""


def has_out_variant(target: Any, result: torch.Tensor) -> bool:
    """Whether a call can write its one result to memory of ours."""
    return (
        target in OUT_VARIANTS
        and result.layout is torch.strided
        and result.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    )


def _rebased_scatter(
    base: torch.Tensor, src: torch.Tensor, size: Any, stride: Any, offset: int
) -> torch.Tensor:
    return aten.as_strided_scatter.default(base, src, size, stride, base.storage_offset() + offset)


def _rebased_copy(base: torch.Tensor, size: Any, stride: Any, offset: int) -> torch.Tensor:
    return aten.as_strided_copy.default(base, size, stride, base.storage_offset() + offset)


# With the position of the argument that is the offset.
_OFFSETS: dict[Any, tuple[int, Callable[..., Any]]] = {
    aten.as_strided_scatter.default: (4, _rebased_scatter),
    aten.as_strided_copy.default: (3, _rebased_copy),
}


def counts_from_storage(target: Any) -> bool:
    """Whether an operator counts an offset from the start of the storage.

    Our tensors lie elsewhere in it than when the graph was traced: it needs `rebased`.
    """
    return target in _OFFSETS


def rebased(node: Node, args: Any) -> tuple[Any, Any, Any]:
    """The same call with its storage offset counted from the first element of its tensor.

    Args:
        args: of the call, as references.

    Returns:
        What to call, its arguments and its keyword arguments.
    """
    position, target = _OFFSETS[node.target]
    base = args_of(node)[0].meta["val"]
    given = argument(node, position, "storage_offset")
    given = base.storage_offset() if given is None else given
    given = given.meta["val"] if isinstance(given, Node) else given
    offset = SizeRef(size_index(given) - size_index(base.storage_offset()))
    return target, (*args[:position], offset), {}
