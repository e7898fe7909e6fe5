"""What dtypes are called in C++: in memory, and as one register or a vector of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

C_STORAGE: Mapping[str, str] = MappingProxyType(
    {
        "f32": "float",
        "f64": "double",
        "bf16": "bf16",
        "f16": "f16",
        "f8e4m3": "f8e4m3",
        "i64": "i64",
        "i32": "i32",
        "i16": "i16",
        "i8": "i8",
        "u8": "u8",
        "b1": "bool8",
    }
)
C_VECTOR: Mapping[str, str] = MappingProxyType(
    {"f32": "vf32", "f64": "vf64", "i32": "vi32", "i64": "vi64", "b1": "vb"}
)
C_SCALAR: Mapping[str, str] = MappingProxyType(
    {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64", "b1": "bool"}
)
