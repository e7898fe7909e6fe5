"""The table of scalar operations.

Code generators, the interpreter, the numeric tests and the documentation are made from it and from
the table of `monoids`. An operation works on *register* values: what memory holds in a *storage*
dtype is widened when it is loaded and rounded when it is stored. The C++ spelling of operation
``x`` is ``dc_x(...)`` for vectors and scalars alike; see ``deepcompile/codegen/prelude.h``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from .monoids import MONOIDS
from .triton_spellings import TRITON, Spelling

__all__ = [
    "BY_ATEN",
    "MONOIDS",
    "OPERAND_DTYPES",
    "OPS",
    "REGISTER_DTYPES",
    "REGISTER_OF",
    "STORAGE_DTYPES",
    "ScalarOp",
    "markdown_table",
]

Kind = Literal["numeric", "float", "int", "bits", "bool", "any"]
Result = Literal["same", "bool", "int64", "float32"]

REGISTER_DTYPES = ("f32", "f64", "i32", "i64", "b1")
STORAGE_DTYPES = ("f32", "f64", "bf16", "f16", "f8e4m3", "i64", "i32", "i16", "i8", "u8", "b1")

REGISTER_OF: Mapping[str, str] = MappingProxyType(
    {
        "f32": "f32",
        "bf16": "f32",
        "f16": "f32",
        "f8e4m3": "f32",
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
        triton: The Triton spelling (see `triton_spellings`); None where there is none.
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
    triton: Spelling | None = None
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
        ulp=ulp,
        cost=cost,
        reference=reference or f"torch.{name}",
    )


def _binary(
    name: str,
    operands: Kind,
    aten: str,
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
        ulp=ulp,
        cost=cost,
        reference=reference,
    )


def _compare(name: str) -> ScalarOp:
    return _binary(
        name,
        "any",
        f"{name}.Tensor {name}.Scalar",
        f"torch.{name}",
        result="bool",
        discontinuous=True,
    )


def _bitwise(name: str) -> ScalarOp:
    return _binary(
        name,
        "bits",
        f"{name}.Tensor {name}.Scalar {name}.Scalar_Tensor",
        f"torch.{name}",
    )


def _shift(name: str, aten: str) -> ScalarOp:
    return _binary(
        name,
        "int",
        f"{aten}.Tensor {aten}.Tensor_Scalar {aten}.Scalar_Tensor",
        f"torch.{aten}",
    )


_TABLE = (
    # Arithmetic. aten.add, sub and rsub carry alpha and are composed elsewhere.
    _binary("add", "numeric", "", "torch.add"),
    _binary("sub", "numeric", "", "torch.sub"),
    _binary("mul", "numeric", "mul.Tensor mul.Scalar", "torch.mul"),
    _binary(
        "div",
        "float",
        "div.Tensor div.Scalar true_divide.Tensor true_divide.Scalar",
        "torch.div",
        cost=4,
        int_to_float=True,
        ulp=0.5,
    ),
    _binary(
        "floordiv",
        "numeric",
        "floor_divide.default floor_divide.Scalar",
        "torch.floor_divide",
        cost=12,
        discontinuous=True,
    ),
    _binary(
        "trunc_div",
        "numeric",
        "",
        "deepcompile.ir.references.trunc_div",
        cost=8,
        discontinuous=True,
    ),
    _binary(
        "remainder",
        "numeric",
        "remainder.Tensor remainder.Scalar remainder.Scalar_Tensor",
        "torch.remainder",
        cost=12,
        discontinuous=True,
    ),
    _binary(
        "fmod",
        "numeric",
        "fmod.Tensor fmod.Scalar",
        "torch.fmod",
        cost=10,
        discontinuous=True,
    ),
    ScalarOp(
        "fma",
        3,
        "numeric",
        ulp=1.0,
        reference="deepcompile.ir.references.fma",
    ),
    _unary("neg", "numeric"),
    _unary("abs", "numeric"),
    _unary("square", "numeric", ulp=0.5),
    _unary(
        "recip",
        aten="reciprocal",
        reference="torch.reciprocal",
        ulp=0.5,
        cost=4,
    ),
    _unary(
        "sign",
        "numeric",
        aten="sign sgn",
        discontinuous=True,
    ),
    _unary("relu", "numeric", reference="torch.relu"),
    _binary(
        "maximum",
        "any",
        "maximum.default max.other clamp_min.default clamp_min.Tensor",
        "torch.maximum",
    ),
    _binary(
        "minimum",
        "any",
        "minimum.default min.other clamp_max.default clamp_max.Tensor",
        "torch.minimum",
    ),
    _binary("fmax", "numeric", "fmax.default", "torch.fmax"),
    _binary("fmin", "numeric", "fmin.default", "torch.fmin"),
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
        reference="torch.where",
    ),
    # Comparisons, logic and bit patterns.
    _compare("eq"),
    _compare("ne"),
    _compare("lt"),
    _compare("le"),
    _compare("gt"),
    _compare("ge"),
    _binary(
        "logical_and",
        "any",
        "logical_and.default",
        "torch.logical_and",
        result="bool",
        discontinuous=True,
    ),
    _binary(
        "logical_or",
        "any",
        "logical_or.default",
        "torch.logical_or",
        result="bool",
        discontinuous=True,
    ),
    _binary(
        "logical_xor",
        "any",
        "logical_xor.default",
        "torch.logical_xor",
        result="bool",
        discontinuous=True,
    ),
    _unary("logical_not", "any", result="bool", discontinuous=True),
    _bitwise("bitwise_and"),
    _bitwise("bitwise_or"),
    _bitwise("bitwise_xor"),
    _unary("bitwise_not", "bits"),
    _shift("shl", "bitwise_left_shift"),
    _shift("shr", "bitwise_right_shift"),
    # Classification.
    _unary("isnan", "numeric", result="bool", discontinuous=True),
    _unary(
        "isinf",
        "numeric",
        result="bool",
        discontinuous=True,
    ),
    _unary("isposinf", "numeric", result="bool", discontinuous=True),
    _unary("isneginf", "numeric", result="bool", discontinuous=True),
    _unary(
        "isfinite",
        "numeric",
        aten="",
        result="bool",
        discontinuous=True,
    ),
    _unary(
        "signbit",
        "numeric",
        result="bool",
        discontinuous=True,
    ),
    _binary(
        "copysign",
        "float",
        "copysign.Tensor copysign.Scalar",
        "torch.copysign",
        int_to_float=True,
        discontinuous=True,
    ),
    # Rounding; the identity on integers, which ATen does not promote.
    *(
        _unary(name, "numeric", discontinuous=True)
        for name in ("floor", "ceil", "trunc", "round", "frac")
    ),
    # Exponentials and logarithms.
    _unary("exp", ulp=1.1, cost=10),
    _unary("exp2", aten="exp2 special_exp2", ulp=1.3, cost=9),
    _unary("expm1", aten="expm1 special_expm1", ulp=1.7, cost=10),
    _unary("log", ulp=0.9, cost=12),
    _unary("log2", ulp=0.6, cost=20),
    _unary("log10", ulp=0.6, cost=20),
    _unary("log1p", aten="log1p special_log1p", ulp=0.6, cost=24),
    _unary("sqrt", ulp=0.5, cost=4),
    _unary("rsqrt", ulp=1.5, cost=8),
    _unary("tanh", ulp=2.5, cost=10),
    _unary("sigmoid", aten="sigmoid special_expit", ulp=2.4, cost=12),
    _unary("erf", aten="erf special_erf", ulp=1.2, cost=13),
    _unary("erfc", aten="erfc special_erfc", ulp=None, cost=250),
    _binary(
        "pow",
        "numeric",
        "pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar",
        "torch.pow",
        ulp=1.0,
        cost=40,
    ),
    # Trigonometry.
    _unary("sin", ulp=0.6, cost=24),
    _unary("cos", ulp=0.6, cost=24),
    _unary("tan", ulp=1.5, cost=28),
    *(
        _unary(name, ulp=None, cost=200)
        for name in ("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")
    ),
    _unary("lgamma", aten="lgamma special_gammaln", ulp=None, cost=400),
    *(
        _binary(
            name,
            "float",
            f"{name}.default",
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
        "torch.xlogy",
        ulp=2.0,
        cost=16,
        int_to_float=True,
    ),
    _binary(
        "xlog1py",
        "float",
        "special_xlog1py.default special_xlog1py.other_scalar special_xlog1py.self_scalar",
        "torch.special.xlog1py",
        ulp=2.0,
        cost=28,
        int_to_float=True,
    ),
    # Special functions.
    _unary("erfinv", aten="erfinv special_erfinv", ulp=1.0, cost=400),
    _unary("digamma", aten="digamma special_digamma", ulp=1.0, cost=300),
    _unary(
        "i0",
        aten="i0 special_i0",
        ulp=1.0,
        cost=300,
        reference="torch.special.i0",
    ),
    _unary("i0e", aten="special_i0e", ulp=1.0, cost=300, reference="torch.special.i0e"),
    _unary(
        "i1",
        aten="special_i1",
        ulp=1.0,
        cost=300,
        reference="torch.special.i1",
    ),
    _unary("i1e", aten="special_i1e", ulp=1.0, cost=300, reference="torch.special.i1e"),
    _unary("sinc", aten="sinc special_sinc", ulp=1.0, cost=200),
    _unary("entr", aten="special_entr", ulp=2.0, cost=14, reference="torch.special.entr"),
    _binary("logaddexp", "float", "logaddexp.default", "torch.logaddexp", ulp=None, cost=40),
    _binary(
        "heaviside",
        "numeric",
        "heaviside.default",
        "torch.heaviside",
        cost=3,
        discontinuous=True,
    ),
    _binary("gcd", "int", "gcd.default", "torch.gcd", cost=200, discontinuous=True),
    _binary("lcm", "int", "lcm.default", "torch.lcm", cost=200, discontinuous=True),
    # Random numbers by (seed, linear element index).
    _binary(
        "philox_u32",
        "int",
        "",
        "deepcompile.ir.references.philox_u32",
        result="int64",
        cost=12,
        discontinuous=True,
    ),
    _binary(
        "uniform",
        "int",
        "",
        "deepcompile.ir.references.uniform",
        result="float32",
        cost=13,
        discontinuous=True,
    ),
    _binary(
        "normal",
        "int",
        "",
        "deepcompile.ir.references.normal",
        result="float32",
        ulp=None,
        cost=80,
        discontinuous=True,
    ),
)

OPS: Mapping[str, ScalarOp] = MappingProxyType(
    {op.name: replace(op, triton=TRITON.get(op.name)) for op in _TABLE}
)
BY_ATEN: Mapping[str, ScalarOp] = MappingProxyType(
    {overload: op for op in OPS.values() for overload in op.aten}
)


def markdown_table() -> str:
    """Return the operation table as a Markdown table, one row an operation."""
    head = ("operation", "operands", "result", "ATen", "Triton", "f32 error (ulp)", "cost")
    rows = [head, ("---",) * len(head)]
    for op in OPS.values():
        overloads = ", ".join(f"`{name}`" for name in op.aten)
        spellings = [op.triton] if isinstance(op.triton, str) else (op.triton or {}).values()
        triton = ", ".join(f"`{text}`" for text in spellings).replace("|", "\\|")
        error = "libm" if op.ulp is None else "exact" if op.ulp == 0 else f"{op.ulp:g}"
        signature = f"`{op.name}`/{op.arity}"
        rows.append((signature, op.operands, op.result, overloads, triton, error, f"{op.cost:g}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
