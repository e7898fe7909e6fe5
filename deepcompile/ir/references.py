"""What operations mean that torch has no function for; `ScalarOp.reference` names them."""

from __future__ import annotations

import math
from typing import Any

import torch

_LOW32 = 0xFFFFFFFF


def philox_u32(seed: Any, offset: Any) -> Any:
    """Return 32 random bits for each element index, as integers in [0, 2**32).

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): the key is
    the seed, the counter is ``offset // 4`` and the word is ``offset % 4``. ``offset`` is an int
    or an int64 tensor; products may wrap around at 64 bits.
    """
    key0, key1 = seed & _LOW32, (seed >> 32) & _LOW32
    block = (offset >> 2) & 0x3FFFFFFFFFFFFFFF
    c0, c1, c2, c3 = block & _LOW32, block >> 32, block * 0, block * 0
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = ((p1 >> 32) & _LOW32) ^ c1 ^ key0, ((p0 >> 32) & _LOW32) ^ c3 ^ key1
        c1, c3 = p1 & _LOW32, p0 & _LOW32
        key0, key1 = (key0 + 0x9E3779B9) & _LOW32, (key1 + 0xBB67AE85) & _LOW32
    # Without comparisons, so that ints and tensors take the same path.
    high, low = (offset >> 1) & 1, offset & 1
    even = c0 * (1 - high) + c2 * high
    odd = c1 * (1 - high) + c3 * high
    return even * (1 - low) + odd * low


def uniform(seed: Any, offset: Any) -> Any:
    """Return 24-bit uniform numbers in [0, 1): a float, or a float32 tensor."""
    word = philox_u32(seed, offset) >> 8
    if isinstance(word, int):
        return word * 2.0**-24
    return word.float() * 2.0**-24


def normal(seed: Any, offset: Any) -> Any:
    """Return normal numbers by Box-Muller on the uniforms at ``offset & ~1`` and ``offset | 1``.

    Even offsets take the cosine, odd ones the sine.
    """
    first = 1 - uniform(seed, offset & ~1)
    angle = uniform(seed, offset | 1) * (2 * math.pi)
    if isinstance(offset, int):
        radius = math.sqrt(-2 * math.log(first))
        return radius * (math.sin(angle) if offset & 1 else math.cos(angle))
    radius = (first.log() * -2).sqrt()
    odd = offset & 1
    return radius * (angle.sin() * odd + angle.cos() * (1 - odd))


def trunc_div(a: Any, b: Any) -> Any:
    """Return the quotient rounded towards zero."""
    return torch.div(a, b, rounding_mode="trunc")


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c``; the product may or may not be rounded."""
    return a * b + c
