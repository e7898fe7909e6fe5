"""Which operators are tested in which way, and how a compiled graph is classified."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

UNINITIALISED = "returns uninitialised memory: only its shape and dtype mean something"
RANDOM = "draws random numbers, by design not those of eager: shape and dtype are compared"

#: Operators whose values are not compared, each with the reason. They are compiled and classified.
EXCLUDED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "empty",
            "empty_like",
            "empty_permuted",
            "empty_strided",
            "new_empty",
            "new_empty_strided",
        ),
        UNINITIALISED,
    ),
    **dict.fromkeys(
        (
            "bernoulli",
            "cauchy",
            "exponential",
            "geometric",
            "log_normal",
            "multinomial",
            "nn.functional.alpha_dropout",
            "nn.functional.dropout",
            "nn.functional.dropout2d",
            "nn.functional.dropout3d",
            "nn.functional.feature_alpha_dropout",
            "nn.functional.fractional_max_pool2d",
            "nn.functional.fractional_max_pool3d",
            "nn.functional.multi_head_attention_forward",
            "nn.functional.rrelu",
            "normal",
            "pca_lowrank",
            "rand_like",
            "randint",
            "randint_like",
            "randn",
            "randn_like",
            "svd_lowrank",
            "uniform",
        ),
        RANDOM,
    ),
}

#: Operators that torch itself cannot compile on some samples, whatever the backend.
TORCH_FAILS: Mapping[str, str] = {
    "masked_select": "aot_eager fails too: torch bounds the size by the input before broadcasting",
}

#: What may stay with ATen in a graph that counts as native: matrix products, convolution,
#: attention, and indexing whose writes or sizes depend on data.
_NATIVE_EXTERNS = re.compile(
    r"aten\.(_?(mm|addmm|bmm|baddbmm|addbmm|mv|addmv|dot|vdot|int_mm|scaled_mm)\b"
    r"|_?(convolution|slow_conv|conv_depthwise|thnn_conv|mkldnn_convolution)"
    r"|_scaled_dot_product|_flash_attention|_efficient_attention"
    r"|_?(unsafe_)?index_(put|reduce|add)|_unsafe_masked_index_put_accumulate|put\b|scatter"
    r"|_?embedding_(dense_backward|bag)|nonzero|masked_(select|scatter)|_unique|unique_"
    r"|bincount|histc|searchsorted|bucketize"
    r"|(adaptive_)?max_pool\dd_with_indices_backward|adaptive_max_pool\dd_backward|max_unpool)"
)


@dataclass(frozen=True, order=True)
class Case:
    """One operator in one dtype and mode; all its samples are compiled."""

    op: str
    dtype: str
    mode: str

    @property
    def key(self) -> str:
        return f"{self.op} {self.dtype} {self.mode}"


@lru_cache(maxsize=1)
def operators() -> Mapping[str, Any]:
    """torch's operator database by full name (variants are told apart)."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {name_of(op): op for op in op_db}


def name_of(op: Any) -> str:
    return op.name if not op.variant_test_name else f"{op.name}.{op.variant_test_name}"


def all_cases(dtypes: Iterable[str], modes: Iterable[str]) -> list[Case]:
    """Every operator in every dtype it has on the CPU, in every mode."""
    return [
        Case(name, dtype, mode)
        for dtype in dtypes
        for mode in modes
        for name, op in operators().items()
        if DTYPES[dtype] in op.supported_dtypes("cpu")
    ]


def excluded(op: str) -> str | None:
    """Why the values of an operator are not compared, or None."""
    return EXCLUDED.get(operators()[op].name)


def is_native_extern(name: str) -> bool:
    """Whether an ATen call is one that a fully compiled graph may hold."""
    return bool(_NATIVE_EXTERNS.match(name)) or name.startswith("aten.copy_")
