"""Every dtype has its names in C++."""

from __future__ import annotations

from deepcompile.codegen.cpp_dtypes import C_SCALAR, C_STORAGE, C_VECTOR
from deepcompile.ir.ops import REGISTER_OF, STORAGE_DTYPES


def test_every_storage_dtype_has_names() -> None:
    assert set(REGISTER_OF) == set(C_STORAGE) == set(STORAGE_DTYPES)
    assert set(REGISTER_OF.values()) == set(C_VECTOR) == set(C_SCALAR)
