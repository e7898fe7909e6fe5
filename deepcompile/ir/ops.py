"""The table of scalar operations and the table of reduction monoids.

Both code generators, the interpreter, the numeric tests and the documentation are made from
these two tables. An operation works on *register* values: what memory holds in a *storage* dtype
is widened when it is loaded and rounded when it is stored. The C++ spelling of operation ``x`` is
``dc_x(...)`` for vectors and scalars alike; see ``deepcompile/codegen/prelude.h``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = [
    "BY_ATEN",
    "C_CONVERT",
    "C_SCALAR",
    "C_STORAGE",
    "C_VECTOR",
    "MONOIDS",
    "OPERAND_DTYPES",
    "OPS",
    "REGISTER_DTYPES",
    "REGISTER_OF",
    "STORAGE_DTYPES",
    "Monoid",
    "ScalarOp",
    "markdown_table",
    "normal",
    "philox_u32",
    "uniform",
]

Kind = Literal["numeric", "float", "int", "bits", "bool", "any"]
Result = Literal["same", "bool", "int64", "float32"]

REGISTER_DTYPES = ("f32", "f64", "i32", "i64", "b1")
STORAGE_DTYPES = ("f32", "f64", "bf16", "f16", "i64", "i32", "i16", "i8", "u8", "b1")

REGISTER_OF: Mapping[str, str] = MappingProxyType(
    {
        "f32": "f32",
        "bf16": "f32",
        "f16": "f32",
        "f64": "f64",
        "i64": "i64",
        "i32": "i32",
        "i16": "i32",
        "i8": "i32",
        "u8": "i32",
        "b1": "b1",
    }
)
"""The register dtype in which a storage dtype is computed."""

OPERAND_DTYPES: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "numeric": ("f32", "f64", "i32", "i64"),
        "float": ("f32", "f64"),
        "int": ("i32", "i64"),
        "bits": ("i32", "i64", "b1"),
        "bool": ("b1",),
        "any": REGISTER_DTYPES,
    }
)
"""The register dtypes an operation with these operands is defined on."""

C_STORAGE: Mapping[str, str] = MappingProxyType(
    {
        "f32": "float",
        "f64": "double",
        "bf16": "bf16",
        "f16": "f16",
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
C_CONVERT: Mapping[str, str] = MappingProxyType({r: f"dc_to_{r}" for r in REGISTER_DTYPES})
"""The prelude function that converts any register value to a register dtype."""


@dataclass(frozen=True)
class ScalarOp:
    """One operation on register values.

    Attributes:
        name: The C++ function is ``dc_{name}``.
        arity: Number of operands.
        operands: Which register dtypes the operation takes once operands have a common dtype
            (the condition of ``where`` is always ``b1``; seeds and offsets are ``i64``).
        result: Dtype of the result: that of the operands, or a fixed one.
        aten: Overloads of which the operation is the whole meaning, arguments in order.
        int_to_float: ATen computes integer operands in floating point.
        discontinuous: A small change of an operand may change the result by much, so operands
            must first be rounded to their logical dtype.
        triton: Format string of the Triton spelling; None where there is none.
        ulp: Largest error of the f32 C++ implementation in units in the last place, over the
            inputs of the numeric tests; 0 is exact, None is whatever libm gives.
        cost: Cost per element relative to an addition.
        reference: Dotted name of the Python function that defines the result.
    """

    name: str
    arity: int
    operands: Kind
    result: Result = "same"
    aten: tuple[str, ...] = ()
    int_to_float: bool = False
    discontinuous: bool = False
    triton: str | None = None
    ulp: float | None = 0.0
    cost: float = 1.0
    reference: str = field(default="")

    def resolve_reference(self) -> Any:
        """Import and return the reference function."""
        module, _, name = self.reference.rpartition(".")
        return getattr(importlib.import_module(module), name)


def _unary(
    name: str,
    operands: Kind = "float",
    *,
    aten: str | None = None,
    triton: str | None = None,
    reference: str | None = None,
    ulp: float | None = 0.0,
    cost: float = 1.0,
    result: Result = "same",
    discontinuous: bool = False,
) -> ScalarOp:
    names = (name if aten is None else aten).split()
    return ScalarOp(
        name,
        1,
        operands,
        result,
        tuple(f"aten.{n}" if "." in n else f"aten.{n}.default" for n in names),
        int_to_float=operands == "float" and result == "same",
        discontinuous=discontinuous,
        triton=triton,
        ulp=ulp,
        cost=cost,
        reference=reference or f"torch.{name}",
    )


def _binary(
    name: str,
    operands: Kind,
    aten: str,
    triton: str | None,
    reference: str,
    *,
    ulp: float | None = 0.0,
    cost: float = 1.0,
    result: Result = "same",
    int_to_float: bool = False,
    discontinuous: bool = False,
) -> ScalarOp:
    return ScalarOp(
        name,
        2,
        operands,
        result,
        tuple(f"aten.{n}" for n in aten.split()),
        int_to_float=int_to_float,
        discontinuous=discontinuous,
        triton=triton,
        ulp=ulp,
        cost=cost,
        reference=reference,
    )


def _compare(name: str, symbol: str) -> ScalarOp:
    return _binary(
        name,
        "any",
        f"{name}.Tensor {name}.Scalar",
        f"({{0}} {symbol} {{1}})",
        f"torch.{name}",
        result="bool",
        discontinuous=True,
    )


def _bitwise(name: str, symbol: str) -> ScalarOp:
    return _binary(
        name,
        "bits",
        f"{name}.Tensor {name}.Scalar {name}.Scalar_Tensor",
        f"({{0}} {symbol} {{1}})",
        f"torch.{name}",
    )


def _shift(name: str, aten: str, symbol: str) -> ScalarOp:
    return _binary(
        name,
        "int",
        f"{aten}.Tensor {aten}.Tensor_Scalar {aten}.Scalar_Tensor",
        f"({{0}} {symbol} {{1}})",
        f"torch.{aten}",
    )


def _libdevice(name: str, arity: int = 1) -> str:
    return f"libdevice.{name}({', '.join(f'{{{i}}}' for i in range(arity))})"


_NAN = "propagate_nan=tl.PropagateNan.ALL"

_TABLE = (
    # Arithmetic. aten.add, sub and rsub carry alpha and are composed elsewhere.
    _binary("add", "numeric", "", "({0} + {1})", "torch.add"),
    _binary("sub", "numeric", "", "({0} - {1})", "torch.sub"),
    _binary("mul", "numeric", "mul.Tensor mul.Scalar", "({0} * {1})", "torch.mul"),
    _binary(
        "div",
        "float",
        "div.Tensor div.Scalar true_divide.Tensor true_divide.Scalar",
        "({0} / {1})",
        "torch.div",
        cost=4,
        int_to_float=True,
        ulp=0.5,
    ),
    _binary(
        "floordiv",
        "numeric",
        "floor_divide.default floor_divide.Scalar",
        None,
        "torch.floor_divide",
        cost=12,
        discontinuous=True,
    ),
    _binary(
        "trunc_div",
        "numeric",
        "",
        None,
        "deepcompile.ir.ops.trunc_div",
        cost=8,
        discontinuous=True,
    ),
    _binary(
        "remainder",
        "numeric",
        "remainder.Tensor remainder.Scalar remainder.Scalar_Tensor",
        None,
        "torch.remainder",
        cost=12,
        discontinuous=True,
    ),
    _binary(
        "fmod",
        "numeric",
        "fmod.Tensor fmod.Scalar",
        _libdevice("fmod", 2),
        "torch.fmod",
        cost=10,
        discontinuous=True,
    ),
    ScalarOp(
        "fma",
        3,
        "numeric",
        triton="tl.fma({0}, {1}, {2})",
        ulp=1.0,
        reference="deepcompile.ir.ops.fma",
    ),
    _unary("neg", "numeric", triton="(-{0})"),
    _unary("abs", "numeric", triton="tl.abs({0})"),
    _unary("square", "numeric", triton="({0} * {0})", ulp=0.5),
    _unary(
        "recip",
        aten="reciprocal",
        triton="(1.0 / {0})",
        reference="torch.reciprocal",
        ulp=0.5,
        cost=4,
    ),
    _unary(
        "sign",
        "numeric",
        aten="sign sgn",
        discontinuous=True,
        triton="(({0} > 0).to({0}.dtype) - ({0} < 0).to({0}.dtype))",
    ),
    _unary("relu", "numeric", triton=f"tl.maximum({{0}}, 0, {_NAN})", reference="torch.relu"),
    _binary(
        "maximum",
        "any",
        "maximum.default max.other clamp_min.default clamp_min.Tensor",
        f"tl.maximum({{0}}, {{1}}, {_NAN})",
        "torch.maximum",
    ),
    _binary(
        "minimum",
        "any",
        "minimum.default min.other clamp_max.default clamp_max.Tensor",
        f"tl.minimum({{0}}, {{1}}, {_NAN})",
        "torch.minimum",
    ),
    _binary("fmax", "numeric", "fmax.default", "tl.maximum({0}, {1})", "torch.fmax"),
    _binary("fmin", "numeric", "fmin.default", "tl.minimum({0}, {1})", "torch.fmin"),
    ScalarOp(
        "where",
        3,
        "any",
        aten=(
            "aten.where.self",
            "aten.where.ScalarSelf",
            "aten.where.ScalarOther",
            "aten.where.Scalar",
        ),
        triton="tl.where({0}, {1}, {2})",
        reference="torch.where",
    ),
    # Comparisons, logic and bit patterns.
    _compare("eq", "=="),
    _compare("ne", "!="),
    _compare("lt", "<"),
    _compare("le", "<="),
    _compare("gt", ">"),
    _compare("ge", ">="),
    _binary(
        "logical_and",
        "any",
        "logical_and.default",
        "(({0} != 0) & ({1} != 0))",
        "torch.logical_and",
        result="bool",
        discontinuous=True,
    ),
    _binary(
        "logical_or",
        "any",
        "logical_or.default",
        "(({0} != 0) | ({1} != 0))",
        "torch.logical_or",
        result="bool",
        discontinuous=True,
    ),
    _binary(
        "logical_xor",
        "any",
        "logical_xor.default",
        "(({0} != 0) ^ ({1} != 0))",
        "torch.logical_xor",
        result="bool",
        discontinuous=True,
    ),
    _unary("logical_not", "any", triton="({0} == 0)", result="bool", discontinuous=True),
    _bitwise("bitwise_and", "&"),
    _bitwise("bitwise_or", "|"),
    _bitwise("bitwise_xor", "^"),
    _unary("bitwise_not", "bits", triton="(~{0})"),
    _shift("shl", "bitwise_left_shift", "<<"),
    _shift("shr", "bitwise_right_shift", ">>"),
    # Classification.
    _unary("isnan", "numeric", triton="({0} != {0})", result="bool", discontinuous=True),
    _unary(
        "isinf",
        "numeric",
        triton="(tl.abs({0}) == float('inf'))",
        result="bool",
        discontinuous=True,
    ),
    _unary(
        "isposinf", "numeric", triton="({0} == float('inf'))", result="bool", discontinuous=True
    ),
    _unary(
        "isneginf", "numeric", triton="({0} == float('-inf'))", result="bool", discontinuous=True
    ),
    _unary(
        "isfinite",
        "numeric",
        aten="",
        triton="(tl.abs({0}) < float('inf'))",
        result="bool",
        discontinuous=True,
    ),
    _unary(
        "signbit",
        "numeric",
        triton="(libdevice.signbit({0}) != 0)",
        result="bool",
        discontinuous=True,
    ),
    _binary(
        "copysign",
        "float",
        "copysign.Tensor copysign.Scalar",
        _libdevice("copysign", 2),
        "torch.copysign",
        int_to_float=True,
        discontinuous=True,
    ),
    # Rounding; the identity on integers, which ATen does not promote.
    *(
        _unary(name, "numeric", triton=triton, discontinuous=True)
        for name, triton in (
            ("floor", "tl.floor({0})"),
            ("ceil", "tl.ceil({0})"),
            ("trunc", "libdevice.trunc({0})"),
            ("round", "libdevice.nearbyint({0})"),
            ("frac", "({0} - libdevice.trunc({0}))"),
        )
    ),
    # Exponentials and logarithms.
    _unary("exp", triton="tl.exp({0})", ulp=1.1, cost=10),
    _unary("exp2", aten="exp2 special_exp2", triton="tl.exp2({0})", ulp=1.3, cost=9),
    _unary("expm1", aten="expm1 special_expm1", triton=_libdevice("expm1"), ulp=1.7, cost=10),
    _unary("log", triton="tl.log({0})", ulp=0.9, cost=12),
    _unary("log2", triton="tl.log2({0})", ulp=0.6, cost=20),
    _unary("log10", triton=_libdevice("log10"), ulp=0.6, cost=20),
    _unary("log1p", aten="log1p special_log1p", triton=_libdevice("log1p"), ulp=0.6, cost=24),
    _unary("sqrt", triton="tl.sqrt_rn({0})", ulp=0.5, cost=4),
    _unary("rsqrt", triton="tl.rsqrt({0})", ulp=1.5, cost=8),
    _unary("tanh", triton=_libdevice("tanh"), ulp=2.5, cost=10),
    _unary("sigmoid", aten="sigmoid special_expit", triton="tl.sigmoid({0})", ulp=2.4, cost=12),
    _unary("erf", aten="erf special_erf", triton="tl.erf({0})", ulp=1.2, cost=13),
    _unary("erfc", aten="erfc special_erfc", triton=_libdevice("erfc"), ulp=None, cost=250),
    _binary(
        "pow",
        "numeric",
        "pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar",
        _libdevice("pow", 2),
        "torch.pow",
        ulp=1.0,
        cost=40,
    ),
    # Trigonometry.
    _unary("sin", triton="tl.sin({0})", ulp=0.6, cost=24),
    _unary("cos", triton="tl.cos({0})", ulp=0.6, cost=24),
    _unary("tan", triton=_libdevice("tan"), ulp=1.5, cost=28),
    *(
        _unary(name, triton=_libdevice(name), ulp=None, cost=200)
        for name in ("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")
    ),
    _unary(
        "lgamma", aten="lgamma special_gammaln", triton=_libdevice("lgamma"), ulp=None, cost=400
    ),
    *(
        _binary(
            name,
            "float",
            f"{name}.default",
            _libdevice(name, 2),
            f"torch.{name}",
            ulp=None,
            cost=200,
            int_to_float=name == "atan2",
            discontinuous=name != "hypot",
        )
        for name in ("atan2", "hypot", "nextafter")
    ),
    _binary(
        "xlogy",
        "float",
        "xlogy.Tensor xlogy.Scalar_Other xlogy.Scalar_Self "
        "special_xlogy.default special_xlogy.other_scalar special_xlogy.self_scalar",
        None,
        "torch.xlogy",
        ulp=2.0,
        cost=16,
        int_to_float=True,
    ),
    _binary(
        "xlog1py",
        "float",
        "special_xlog1py.default special_xlog1py.other_scalar special_xlog1py.self_scalar",
        None,
        "torch.special.xlog1py",
        ulp=2.0,
        cost=28,
        int_to_float=True,
    ),
    # Special functions.
    _unary("erfinv", aten="erfinv special_erfinv", triton=_libdevice("erfinv"), ulp=1.0, cost=400),
    _unary("digamma", aten="digamma special_digamma", ulp=1.0, cost=300),
    _unary(
        "i0",
        aten="i0 special_i0",
        triton=_libdevice("cyl_bessel_i0"),
        ulp=1.0,
        cost=300,
        reference="torch.special.i0",
    ),
    _unary("i0e", aten="special_i0e", ulp=1.0, cost=300, reference="torch.special.i0e"),
    _unary(
        "i1",
        aten="special_i1",
        triton=_libdevice("cyl_bessel_i1"),
        ulp=1.0,
        cost=300,
        reference="torch.special.i1",
    ),
    _unary("i1e", aten="special_i1e", ulp=1.0, cost=300, reference="torch.special.i1e"),
    _unary("sinc", aten="sinc special_sinc", ulp=1.0, cost=200),
    _unary("entr", aten="special_entr", ulp=2.0, cost=14, reference="torch.special.entr"),
    _binary("logaddexp", "float", "logaddexp.default", None, "torch.logaddexp", ulp=None, cost=40),
    _binary(
        "heaviside",
        "numeric",
        "heaviside.default",
        None,
        "torch.heaviside",
        cost=3,
        discontinuous=True,
    ),
    _binary("gcd", "int", "gcd.default", None, "torch.gcd", cost=200, discontinuous=True),
    _binary("lcm", "int", "lcm.default", None, "torch.lcm", cost=200, discontinuous=True),
    # Random numbers by (seed, linear element index).
    _binary(
        "philox_u32",
        "int",
        "",
        None,
        "deepcompile.ir.ops.philox_u32",
        result="int64",
        cost=12,
        discontinuous=True,
    ),
    _binary(
        "uniform",
        "int",
        "",
        "tl.rand({0}, {1})",
        "deepcompile.ir.ops.uniform",
        result="float32",
        cost=13,
        discontinuous=True,
    ),
    _binary(
        "normal",
        "int",
        "",
        "tl.randn({0}, {1})",
        "deepcompile.ir.ops.normal",
        result="float32",
        ulp=None,
        cost=80,
        discontinuous=True,
    ),
)

OPS: Mapping[str, ScalarOp] = MappingProxyType({op.name: op for op in _TABLE})
BY_ATEN: Mapping[str, ScalarOp] = MappingProxyType(
    {overload: op for op in _TABLE for overload in op.aten}
)


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
    return importlib.import_module("torch").div(a, b, rounding_mode="trunc")


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c``; the product may or may not be rounded."""
    return a * b + c


def markdown_table() -> str:
    """Return the operation table as a Markdown table, one row an operation."""
    head = ("operation", "operands", "result", "ATen", "Triton", "f32 error (ulp)", "cost")
    rows = [head, ("---",) * len(head)]
    for op in OPS.values():
        overloads = ", ".join(f"`{name}`" for name in op.aten)
        triton = f"`{op.triton}`".replace("|", "\\|") if op.triton else ""
        error = "libm" if op.ulp is None else "exact" if op.ulp == 0 else f"{op.ulp:g}"
        signature = f"`{op.name}`/{op.arity}"
        rows.append((signature, op.operands, op.result, overloads, triton, error, f"{op.cost:g}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
