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


def _libdevice(*names: str) -> dict[str, dict[str, str]]:
    return {name: {"float": f"libdevice.{name}({{0}})"} for name in names}


_SAME = {"i32": "{0}", "i64": "{0}"}

# By op: spelling by register dtype, else by "float" or "int", else the spelling of the op table.
_SPELLING: Mapping[str, Mapping[str, str]] = {
    "div": {"f32": "tl.div_rn({0}, {1})", "f64": "({0} / {1})"},
    "recip": {"f32": "tl.div_rn(1.0, {0})", "f64": "(1.0 / {0})"},
    "floordiv": {
        "int": "dl.floordiv_int({0}, {1})",
        "f32": "dl.floordiv({0}, {1}, tl.div_rn({0}, {1}))",
        "f64": "dl.floordiv({0}, {1}, ({0} / {1}))",
    },
    "trunc_div": {
        "int": "({0} // {1})",
        "f32": "libdevice.trunc(tl.div_rn({0}, {1}))",
        "f64": "libdevice.trunc({0} / {1})",
    },
    "remainder": {"int": "dl.remainder_int({0}, {1})", "float": "dl.remainder({0}, {1})"},
    "fmod": {"int": "({0} % {1})", "float": "libdevice.fmod({0}, {1})"},
    "sign": {"int": "dl.sign({0})", "float": "dl.sign({0})"},
    "relu": {"float": "dl.maximum({0}, 0.0)", "int": "tl.maximum({0}, 0)"},
    "maximum": {
        "float": "dl.maximum({0}, {1})",
        "int": "tl.maximum({0}, {1})",
        "b1": "({0} | {1})",
    },
    "minimum": {
        "float": "dl.minimum({0}, {1})",
        "int": "tl.minimum({0}, {1})",
        "b1": "({0} & {1})",
    },
    "isinf": {"int": "({0} != {0})"},
    "isposinf": {"int": "({0} != {0})"},
    "isneginf": {"int": "({0} != {0})"},
    "isfinite": {"int": "({0} == {0})"},
    "signbit": {"int": "({0} < 0)", "float": "(libdevice.signbit({0}) != 0)"},
    "floor": {"float": "libdevice.floor({0})", **_SAME},
    "ceil": {"float": "libdevice.ceil({0})", **_SAME},
    "trunc": {"float": "libdevice.trunc({0})", **_SAME},
    "round": {"float": "libdevice.nearbyint({0})", **_SAME},
    "frac": {"float": "({0} - libdevice.trunc({0}))", "int": "({0} - {0})"},
    **_libdevice("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "erf", "sin", "cos"),
    "sqrt": {"f32": "tl.sqrt_rn({0})", "f64": "libdevice.sqrt({0})"},
    "sigmoid": {"float": "dl.sigmoid({0})"},
    "pow": {"float": "libdevice.pow({0}, {1})", "int": "dl.power_int({0}, {1})"},
    "xlogy": {"float": "dl.xlogy({0}, {1})"},
    "xlog1py": {"float": "dl.xlog1py({0}, {1})"},
    "sinc": {"float": "dl.sinc({0})"},
    "entr": {"float": "dl.entr({0})"},
    "logaddexp": {"float": "dl.logaddexp({0}, {1})"},
    "heaviside": {"float": "dl.heaviside({0}, {1})", "int": "dl.heaviside({0}, {1})"},
    "fma": {"float": "tl.fma({0}, {1}, {2})", "int": "({0} * {1} + {2})"},
    "philox_u32": {"int": "dl.philox_u32({0}, {1}).to(tl.int64)"},
    "uniform": {"int": "dl.uniform({0}, {1})"},
    "normal": {"int": "dl.normal({0}, {1})"},
}

_KIND = {"f32": "float", "f64": "float", "i32": "int", "i64": "int", "b1": "b1"}


def spell(op: str, dtype: str) -> str:
    """The format string of a scalar op on operands of register dtype `dtype`.

    Raises:
        CannotEmit: when there is none.
    """
    own = _SPELLING.get(op, {})
    text = own.get(dtype) or own.get(_KIND[dtype]) or OPS[op].triton
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


def convert(text: str, source: str, to: str) -> str:
    """A register value `text` of register dtype `source` as storage dtype `to`, in a register."""
    if to == source:
        return text
    if to == "b1":
        return f"({text} != 0)"
    narrow = f"{text}.to({TRITON_DTYPE[to]})"
    if to in ("bf16", "f16"):
        if source not in ("f32", "f64"):
            text = f"{text}.to(tl.float32)"
        return f"{text}.to({TRITON_DTYPE[to]}).to(tl.float32)"
    if to in ("i8", "i16", "u8"):
        if source in ("f32", "f64"):
            # Out of range values wrap around as in C, through a wider integer.
            narrow = f"{text}.to(tl.int32).to({TRITON_DTYPE[to]})"
        return f"{narrow}.to(tl.int32)"
    return narrow
