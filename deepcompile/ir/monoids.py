"""The table of reduction monoids: the state of a reduction, how it starts and is combined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Monoid:
    """How a reduction is carried and combined.

    Attributes:
        name: Name of the reduction.
        arity: Number of values in the state.
        state: What they are; ``value`` has the register dtype of the reduced expression,
            ``index`` is ``i64`` and every other one has the dtype of the value.
        identity: Register dtype of the value to the state that changes nothing.
        combine: C++ function. With one value, ``s = f(s, t)``; with more, ``f(s..., t...)``
            updates the first state in place. Works on vectors and scalars.
        horizontal: C++ function that folds the lanes. With one value, ``s = f(v)``; with more,
            ``f(v..., &s...)``.
        splittable: Partial results of any split of the domain may be combined in any order
            (argmax and argmin keep the smallest index by comparing indices).
        triton: Spelling of the whole-tile reduction over an axis, or None.
    """

    name: str
    arity: int
    state: tuple[str, ...]
    identity: Mapping[str, tuple[float | int | bool, ...]]
    combine: str
    horizontal: str
    splittable: bool = True
    triton: str | None = None


def depends_on_order(kind: str, dtype: str) -> bool:
    """Whether the last bits of a reduction of values of `dtype`, a register dtype, depend on the
    order in which they are combined."""
    return kind in ("sum", "prod", "welford", "lse") and dtype in ("f32", "f64")


_I32_MAX = 2**31 - 1
_I64_MAX = 2**63 - 1
_LOWEST: Mapping[str, Any] = {
    "f32": -math.inf,
    "f64": -math.inf,
    "i32": -_I32_MAX - 1,
    "i64": -_I64_MAX - 1,
    "b1": False,
}
_HIGHEST: Mapping[str, Any] = {
    "f32": math.inf,
    "f64": math.inf,
    "i32": _I32_MAX,
    "i64": _I64_MAX,
    "b1": True,
}


def _each(values: Mapping[str, Any], *rest: Any) -> Mapping[str, tuple[Any, ...]]:
    return MappingProxyType({dtype: (value, *rest) for dtype, value in values.items()})


_ZERO: Mapping[str, Any] = {"f32": 0.0, "f64": 0.0, "i32": 0, "i64": 0}
_ONE: Mapping[str, Any] = {"f32": 1.0, "f64": 1.0, "i32": 1, "i64": 1}
_FLOAT_ZERO: Mapping[str, Any] = {"f32": 0.0, "f64": 0.0}
_FLOAT_LOWEST: Mapping[str, Any] = {"f32": -math.inf, "f64": -math.inf}
_NUMERIC_LOWEST = {k: v for k, v in _LOWEST.items() if k != "b1"}
_NUMERIC_HIGHEST = {k: v for k, v in _HIGHEST.items() if k != "b1"}
_VALUE = ("value",)
_ARG = ("value", "index")

MONOIDS: Mapping[str, Monoid] = MappingProxyType(
    {
        monoid.name: monoid
        for monoid in (
            Monoid("sum", 1, _VALUE, _each(_ZERO), "dc_add", "dc_hsum", triton="tl.sum"),
            Monoid("prod", 1, _VALUE, _each(_ONE), "dc_mul", "dc_hprod", triton="tl.reduce"),
            Monoid("max", 1, _VALUE, _each(_LOWEST), "dc_maximum", "dc_hmax", triton="tl.max"),
            Monoid("min", 1, _VALUE, _each(_HIGHEST), "dc_minimum", "dc_hmin", triton="tl.min"),
            Monoid("any", 1, _VALUE, _each({"b1": False}), "dc_bitwise_or", "dc_hany"),
            Monoid("all", 1, _VALUE, _each({"b1": True}), "dc_bitwise_and", "dc_hall"),
            Monoid(
                "argmax",
                2,
                _ARG,
                _each(_NUMERIC_LOWEST, _I64_MAX),
                "dc_argmax_combine",
                "dc_hargmax",
                triton="tl.argmax",
            ),
            Monoid(
                "argmin",
                2,
                _ARG,
                _each(_NUMERIC_HIGHEST, _I64_MAX),
                "dc_argmin_combine",
                "dc_hargmin",
                triton="tl.argmin",
            ),
            Monoid(
                "welford",
                3,
                ("mean", "m2", "count"),
                _each(_FLOAT_ZERO, 0.0, 0.0),
                "dc_welford_combine",
                "dc_hwelford",
                triton="tl.reduce",
            ),
            Monoid(
                "lse",
                2,
                ("maximum", "sum"),
                _each(_FLOAT_LOWEST, 0.0),
                "dc_lse_combine",
                "dc_hlse",
                triton="tl.reduce",
            ),
        )
    }
)
