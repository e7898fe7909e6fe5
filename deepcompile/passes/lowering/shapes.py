"""Shapes of graph values as `Index` polynomials, and dtypes by their IR names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Node

from ...ir.index import ONE, SIGNED, ZERO, Index, floordiv, mod, product
from .refusals import CannotLower

DTYPES: dict[torch.dtype, str] = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float8_e4m3fn: "f8e4m3",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "b1",
}


def dtype_name(dtype: torch.dtype) -> str:
    """The IR name of a torch dtype.

    Raises:
        CannotLower: for dtypes that kernels do not know (complex, most of float8, quantised).
    """
    name = DTYPES.get(dtype)
    if name is None:
        raise CannotLower(f"dtype {dtype} is not known to kernels")
    return name


@lru_cache(maxsize=8192)
def _from_sympy(expression: Any) -> Index:
    import sympy

    if expression.is_Integer:
        return Index.of(int(expression))
    if expression.is_Symbol:
        if str(expression).startswith("u"):
            raise CannotLower(f"size {expression} depends on data")
        # Numbers that are no sizes (the width of a padding) may be negative; see `ir.index`.
        name = str(expression)
        return Index.of(name if expression.is_positive else f"{SIGNED}{name}")
    if isinstance(expression, sympy.Add):
        total = ZERO
        for argument in expression.args:
            total = total + _from_sympy(argument)
        return total
    if isinstance(expression, sympy.Mul):
        total = ONE
        for argument in expression.args:
            total = total * _from_sympy(argument)
        return total
    if isinstance(expression, sympy.Pow) and expression.exp.is_Integer and expression.exp > 0:
        base, total = _from_sympy(expression.base), ONE
        for _ in range(int(expression.exp)):
            total = total * base
        return total
    kind = type(expression).__name__
    if kind == "Max" and len(expression.args) == 2 and expression.args[0] == 1:
        # What strides of sizes that may be 0 are made of: 1 // (size + 1) is 1 for 0, else 0.
        size = _from_sympy(expression.args[1])
        return size + floordiv(ONE, size + 1, {})
    if kind in ("FloorDiv", "CleanDiv"):
        return floordiv(_from_sympy(expression.args[0]), _from_sympy(expression.args[1]), {})
    if kind in ("Mod", "PythonMod"):
        return mod(_from_sympy(expression.args[0]), _from_sympy(expression.args[1]), {})
    if kind == "ModularIndexing":
        base, divisor, modulus = map(_from_sympy, expression.args)
        return mod(floordiv(base, divisor, {}), modulus, {})
    raise CannotLower(f"size expression {expression} is not known to kernels")


def size_index(size: int | torch.SymInt) -> Index:
    """A size or stride as an `Index` over size symbols."""
    if isinstance(size, int):
        return Index.of(size)
    return _from_sympy(size.node.expr)


def settled(value: Any, size: int | torch.SymInt) -> Index:
    """A slice bound or an index of a dim of `size`, counted from the front and within the dim.

    For symbolic numbers the case that held when the graph was traced: it is guarded by then.
    """
    if isinstance(value, Node):
        value = value.meta["val"]
    at, length = _hint(value), _hint(size)
    if at < 0:
        return ZERO if at + length < 0 else size_index(value) + size_index(size)
    return size_index(size) if at > length else size_index(value)


def _hint(value: int | torch.SymInt) -> int:
    if isinstance(value, int):
        return value
    hint = value.node.hint
    if hint is None:
        raise CannotLower(f"{value} depends on data")
    return int(hint)


@dataclass(frozen=True)
class TensorInfo:
    """Shape, strides and storage offset in elements, and dtype (IR name)."""

    shape: tuple[Index, ...]
    strides: tuple[Index, ...]
    offset: Index
    dtype: str

    @property
    def numel(self) -> Index:
        """The number of elements."""
        return product(self.shape)


def describe(tensor: torch.Tensor) -> TensorInfo:
    """The `TensorInfo` of a strided (fake) tensor."""
    if tensor.layout is not torch.strided:
        raise CannotLower(f"layout {tensor.layout} is not known to kernels")
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        raise CannotLower("quantised, conjugate or negative views are not known to kernels")
    return TensorInfo(
        tuple(size_index(size) for size in tensor.shape),
        tuple(size_index(stride) for stride in tensor.stride()),
        size_index(tensor.storage_offset()),
        dtype_name(tensor.dtype),
    )


def args_of(node: Node) -> tuple[Any, ...]:
    """A node's positional arguments, untyped: what each is follows from the operator."""
    return node.args


def argument(node: Node, number: int, name: str, default: Any = None) -> Any:
    """A positional argument, or the keyword of that name, or the default."""
    if len(node.args) > number:
        return node.args[number]
    return node.kwargs.get(name, default)


class Facts:
    """`TensorInfo` of graph nodes, worked out once a node."""

    def __init__(self) -> None:
        self._known: dict[Node, TensorInfo] = {}

    def __getitem__(self, node: Node) -> TensorInfo:
        info = self._known.get(node)
        if info is None:
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                raise CannotLower(f"{node.name} is not a single tensor")
            info = self._known[node] = describe(value)
        return info


def memory_order(info: TensorInfo) -> list[int]:
    """Dims of size other than 1, outermost in memory first."""
    dims = [dim for dim, size in enumerate(info.shape) if size != ONE]
    known = [(stride, dim) for dim in dims if (stride := info.strides[dim].constant()) is not None]
    if len(known) == len(dims):
        return [dim for _, dim in sorted(known, key=lambda pair: (-pair[0], pair[1]))]

    def weight(dim: int) -> tuple[int, int, int]:
        stride = info.strides[dim]
        degree = max((len(monomial) for monomial, _ in stride.terms), default=0)
        return (-degree, -sum(abs(c) for _, c in stride.terms), dim)

    return sorted(dims, key=weight)
