"""Tensors that a graph holds, as text: `[1.0, 2.0]`, or packed bytes where they are many."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import torch
from torch import Tensor

MAX_LISTED = 64
"""Tensors of more elements print as their bytes, zlib-compressed, in base64."""
MAX_BYTES = 1 << 14
"""Tensors of more bytes print as `...`: they must be given to the parser, or stay without values.
"""
MISSING = "..."


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has numbers that could be printed."""
    fake = isinstance(tensor, torch._subclasses.FakeTensor) or tensor.is_meta
    return not fake and tensor.layout == torch.strided


def print_packed(tensor: Tensor) -> str:
    """`packed("...")`: the elements in their order, whatever the strides."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f'packed("{base64.b64encode(zlib.compress(raw, 9)).decode()}")'


def read_packed(text: str, like: Tensor) -> Tensor:
    """The tensor in the layout of `like`. Raises ValueError when the text is not its bytes."""
    wanted = math.prod(like.shape) * like.element_size()
    try:
        packed = base64.b64decode(json.loads(text), validate=True)
        unpacking = zlib.decompressobj()
        # One byte more than is due: what is longer is refused without unpacking all of it.
        raw = unpacking.decompress(packed, wanted + 1)
    except (TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"not the packed bytes of a constant: {error}") from error
    if len(raw) != wanted:
        raise ValueError(f"a constant of {wanted} bytes is packed as another number of bytes")
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0).byte()
    return laid_out(flat.view(like.dtype).reshape(tuple(like.shape)), like)


def laid_out(values: Tensor, like: Tensor) -> Tensor:
    """`values` with the strides and the device of `like`, which is fake."""
    made = torch.empty_strided(
        tuple(like.shape), like.stride(), dtype=like.dtype, device=like.device
    )
    return made.copy_(values)


def from_items(items: Any, like: Tensor) -> Tensor:
    """The tensor that nested lists describe, in the layout of `like`."""
    return laid_out(torch.tensor(items, dtype=like.dtype).reshape(tuple(like.shape)), like)
