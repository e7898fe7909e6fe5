"""What Triton's interpreter lacks to stand for a GPU: libdevice, rounding and products of bf16.

The interpreter cuts the low bits off where hardware rounds to nearest even, and multiplies the bits
of bf16 matrices as if they were integers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SAME_NAME = """
    acos acosh asin asinh atan atan2 atanh ceil copysign cos cosh erf erfc erfinv exp exp2 expm1
    floor fmod hypot lgamma log log10 log1p log2 nextafter pow rsqrt sin sinh sqrt tan tanh trunc
"""
_OTHER: dict[str, Callable[..., Tensor]] = {
    "nearbyint": torch.round,
    "cyl_bessel_i0": torch.special.i0,
    "cyl_bessel_i1": torch.special.i1,
    "cospi": lambda x: torch.cos(x * math.pi),
    "sinpi": lambda x: torch.sin(x * math.pi),
    "signbit": lambda x: torch.signbit(x).int(),
}


@functools.cache
def install() -> None:
    """Put the functions in place, once; Triton must have been imported with TRITON_INTERPRET=1."""
    import numpy as np
    from triton import language
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def on_blocks(function: Callable[..., Tensor]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            first = next(arg for arg in args if isinstance(arg, language.tensor))
            arrays = [
                arg.handle.data
                if isinstance(arg, language.tensor)
                else np.asarray(arg, first.handle.data.dtype)
                for arg in args
            ]
            blocks = [torch.from_numpy(np.array(a)) for a in np.broadcast_arrays(*arrays)]
            made = function(*blocks).numpy()
            scalar = language.int32 if made.dtype == np.int32 else first.dtype
            kind = language.block_type(scalar, list(made.shape)) if made.shape else scalar
            return language.tensor(TensorHandle(made, scalar), kind)

        return call

    for name in _SAME_NAME.split():
        setattr(libdevice, name, on_blocks(getattr(torch, name)))
    for name, function in _OTHER.items():
        setattr(libdevice, name, on_blocks(function))

    cut = InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, dtype: Any) -> Any:
        if source.dtype.scalar == language.float32 and dtype.scalar == language.bfloat16:
            rounded = torch.from_numpy(np.array(source.data)).to(torch.bfloat16)
            return TensorHandle(rounded.view(torch.uint16).numpy(), dtype.scalar)
        return cut(self, source, dtype)

    InterpreterBuilder.cast_impl = cast
    dot = InterpreterBuilder.create_dot

    def dot_of_numbers(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        return dot(self, numbers(left), numbers(right), *rest)

    def numbers(handle: Any) -> Any:
        """Numbers of bf16, which numpy holds as bits."""
        if handle.dtype.scalar != language.bfloat16:
            return handle
        bits = torch.from_numpy(np.array(handle.data)).view(torch.bfloat16)
        return TensorHandle(bits.float().numpy(), language.float32)

    InterpreterBuilder.create_dot = dot_of_numbers
