"""How scalar ops, casts and literals are spelled in Triton, by register dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..errors import DeepCompileError
from ..ir.ops import OPS

TRITON_DTYPE: Mapping[str, str] = {
    "f32": "tl.float32",
    "f64": "tl.float64",
    "bf16": "tl.bfloat16",
    "f16": "tl.float16",
    "f8e4m3": "tl.uint8",  # as bits: older GPUs, and the interpreter, lack the type
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u8": "tl.uint8",
    "b1": "tl.int1",
}
POINTER: Mapping[str, str] = {
    "f32": "*fp32",
    "f64": "*fp64",
    "bf16": "*bf16",
    "f16": "*fp16",
    "f8e4m3": "*u8",
    "i64": "*i64",
    "i32": "*i32",
    "i16": "*i16",
    "i8": "*i8",
    "u8": "*u8",
    "b1": "*i1",
}
"""The type of a pointer argument in a signature."""

COMBINE: Mapping[str, str] = {
    "sum": "dl.add",
    "prod": "dl.mul",
    "max": "dl.maximum",
    "min": "dl.minimum",
    "any": "dl.either",
    "all": "dl.both",
    "argmax": "dl.argmax",
    "argmin": "dl.argmin",
    "welford": "dl.welford",
    "lse": "dl.lse",
}
"""The device function that joins two states of a monoid."""


class CannotEmit(DeepCompileError):
    """A kernel that has no Triton form; it runs as its ATen ops."""


_KIND = {"f32": "float", "f64": "float", "i32": "int", "i64": "int", "b1": "b1"}


def spell(op: str, dtype: str) -> str:
    """The format string of a scalar op on operands of register dtype `dtype`.

    Raises:
        CannotEmit: when there is none.
    """
    spelling = OPS[op].triton
    if spelling is None or isinstance(spelling, str):
        text = spelling
    else:
        text = spelling.get(dtype) or spelling.get(_KIND[dtype])
    if text is None:
        raise CannotEmit(f"{op} on {dtype} has no Triton spelling")
    return text


def literal(value: float | int | bool) -> str:
    """A Python literal that Triton reads as `value`."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return repr(value)
    if math.isnan(value):
        return 'float("nan")'
    if math.isinf(value):
        return f'float("{"-" if value < 0 else ""}inf")'
    return repr(value)


def as_f8e4m3(text: str, source: str) -> str:
    """The bits of a register value `text` of register dtype `source` as an 8-bit float."""
    # By way of f32, as torch goes.
    return f"dl.f32_to_f8e4m3({text if source == 'f32' else f'{text}.to(tl.float32)'})"


def convert(text: str, source: str, to: str) -> str:
    """A register value `text` of register dtype `source` as storage dtype `to`, in a register."""
    if to == source:
        return text
    if to == "b1":
        return f"({text} != 0)"
    if to == "f8e4m3":
        return f"dl.f8e4m3_to_f32({as_f8e4m3(text, source)})"
    narrow = f"{text}.to({TRITON_DTYPE[to]})"
    if to in ("bf16", "f16"):
        if source != "f32":
            # By way of f32, as torch goes.
            text = f"{text}.to(tl.float32)"
        return f"{text}.to({TRITON_DTYPE[to]}).to(tl.float32)"
    if to in ("i8", "i16", "u8"):
        if source in ("f32", "f64"):
            # Out of range values wrap around as in C, through a wider integer.
            narrow = f"{text}.to(tl.int32).to({TRITON_DTYPE[to]})"
        return f"{narrow}.to(tl.int32)"
    return narrow
