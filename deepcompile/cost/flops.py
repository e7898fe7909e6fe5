"""Operations of ATen calls that are no pointwise work: products, convolutions, attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def flops_of(node: Node) -> int:
    """Multiplications and additions of one call, two a pair; 0 for what no rule knows.

    Symbolic sizes count as their hints. The rules are torch's own (`torch.utils.flop_counter`);
    attention on a CPU, which those leave out, counts like attention on a GPU.
    """
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return 0
    args: Any
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), _example)
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(_shape(tensor) for tensor in args[:3])))
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(_shape(tensor) for tensor in args[:4])))
    count = flop_registry.get(packet)
    if count is None:
        return 0
    return int(count(*args, **kwargs, out_val=_example(node)))


def _example(node: Node) -> Any:
    return _with_hints(node.meta.get("val"))


def _with_hints(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value._has_symbolic_sizes_strides:  # type: ignore[attr-defined]
        return torch.empty(_shape(value), device="meta", dtype=value.dtype)
    if isinstance(value, tuple | list):
        return type(value)(_with_hints(item) for item in value)
    return value


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(extent_of(size) for size in tensor.shape)


TYPICAL_EXTENT = 64


def extent_of(size: int | torch.SymInt, sizes: Mapping[str, int] | None = None) -> int:
    """A size by example: from those of its symbols in `sizes`, or else its hint."""
    if isinstance(size, int):
        return size
    if sizes:
        known = {symbol: sizes.get(str(symbol)) for symbol in size.node.expr.free_symbols}
        if None not in known.values():
            return int(size.node.expr.xreplace(known))
    hint = getattr(size.node, "hint", None)
    return int(hint) if hint is not None else TYPICAL_EXTENT
