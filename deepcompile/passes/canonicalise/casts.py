"""Which conversions between types lose nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten
prims = torch.ops.prims

CASTS = frozenset((aten._to_copy.default, prims.convert_element_type.default))

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_EXACT: dict[torch.dtype, frozenset[torch.dtype]] = {
    torch.bool: frozenset(
        (torch.uint8, *_SIGNED, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ),
    torch.uint8: frozenset(
        (*_SIGNED[1:], torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ),
    torch.int8: frozenset(
        (*_SIGNED[1:], torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ),
    torch.int16: frozenset((*_SIGNED[2:], torch.float32, torch.float64)),
    torch.int32: frozenset((torch.int64, torch.float64)),
    torch.float8_e4m3fn: frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    torch.float16: frozenset((torch.float32, torch.float64)),
    torch.bfloat16: frozenset((torch.float32, torch.float64)),
    torch.float32: frozenset((torch.float64,)),
}


def is_exact(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value of `source` is one of `target`."""
    return source == target or target in _EXACT.get(source, ())


def is_detour(source: torch.dtype, middle: torch.dtype, target: torch.dtype) -> bool:
    """Whether converting over `middle` gives what converting at once gives."""
    if not is_exact(source, middle):
        return False
    # Out of range, floats become integers in a way that depends on the float's type.
    integral = not target.is_floating_point and not target.is_complex and target != torch.bool
    return not (integral and middle.is_floating_point and not is_exact(source, target))


def only_converts(target: Any, node: Node) -> bool:
    """Whether a call of one of `CASTS` changes nothing but the type."""
    if target is prims.convert_element_type.default:
        return True
    return not node.kwargs.keys() & {"layout", "device", "pin_memory", "memory_format"}
