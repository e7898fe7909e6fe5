"""Values of graph nodes as text: `f32[s0, 4]{1, s0}@cuda:0`, `sym(2*s0)`; and symbols with hints.

A tensor's strides are left out when it is contiguous, its storage offset (`f32[4]+{2}`) when it is
0, its device when that is the CPU. `requires_grad` is not part of the text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy import functions as torch_sympy
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

_SHORT = {
    torch.bool: "b1",
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint64: "u64",
    torch.uint32: "u32",
    torch.uint16: "u16",
    torch.uint8: "u8",
    torch.complex128: "c128",
    torch.complex64: "c64",
}
_SYMBOL = re.compile(r"symbols (\w+) = (\?|-?[\d.]+)(?: in \[(-?[\w.]+), (-?[\w.]+)\])?( signed)?")
_FROM_SHORT = {name: dtype for dtype, name in _SHORT.items()}
_FUNCTIONS = {
    name: getattr(torch_sympy, name)
    for name in (
        "CeilDiv", "CeilToInt", "CleanDiv", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt",
        "Identity", "IntTrueDiv", "LShift", "Max", "Min", "Mod", "ModularIndexing", "PowByNatural",
        "PythonMod", "RShift", "RoundToInt", "ToFloat", "TruncToFloat", "TruncToInt", "Where",
    )
    if hasattr(torch_sympy, name)
}  # fmt: skip
_FUNCTIONS |= {"Eq": sympy.Eq, "Ne": sympy.Ne, "And": sympy.And, "Or": sympy.Or, "Not": sympy.Not}
_COMPARISONS = {
    ast.Lt: sympy.Lt, ast.LtE: sympy.Le, ast.Gt: sympy.Gt, ast.GtE: sympy.Ge, ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """`f32` for `torch.float32`; torch's own name where there is no short one."""
    return _SHORT.get(dtype) or str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype that prints as `name`. Raises ValueError when there is none."""
    dtype = _FROM_SHORT.get(name) or getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def expression(value: Any) -> Any:
    """The sympy expression of a symbolic number, or the plain number. Adds no guard."""
    return value.node.expr if isinstance(value, SYMBOLIC) else value


SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SYMBOLIC_WORD = {torch.SymInt: "sym", torch.SymFloat: "symfloat", torch.SymBool: "symbool"}


class _Opaque:
    """The value of a node of which the text says only that it is neither number nor tensor."""


OPAQUE = _Opaque()


def contiguous_strides(sizes: Sequence[Any]) -> list[Any]:
    """Strides of a contiguous tensor whose sizes are numbers or sympy expressions."""
    strides: list[Any] = []
    step: Any = 1
    for size in reversed(sizes):
        strides.append(step)
        step = step * (max(size, 1) if isinstance(size, int) else size)
    return strides[::-1]


def print_type(value: Any) -> str:
    """The type of `meta["val"]`: a tensor, a number, None, or a tuple of these."""
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(print_type, value))
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, SYMBOLIC):
        return f"{_SYMBOLIC_WORD[type(value)]}({expression(value)})"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return _print_tensor(value)
    return "opaque"


def _print_tensor(tensor: torch.Tensor) -> str:
    sizes = [expression(s) for s in tensor.shape]
    strides = [expression(s) for s in tensor.stride()]
    text = f"{dtype_name(tensor.dtype)}[{', '.join(map(str, sizes))}]"
    if strides != contiguous_strides(sizes):
        text += "{" + ", ".join(map(str, strides)) + "}"
    offset = expression(tensor.storage_offset())
    if offset != 0:
        text += f"+{{{offset}}}"
    if tensor.device.type != "cpu":
        text += f"@{tensor.device}"
    return text


def print_symbols(values: Iterable[Any]) -> list[str]:
    """`symbols s0 = 5 in [2, int_oo]` for each symbol in these values, by name.

    `?` stands for a size that depends on data; `signed` follows a number that is no size.
    """
    found: dict[str, str] = {}
    for value in values:
        for number in _symbolic_numbers(value):
            env = number.node.shape_env
            for symbol in number.node.expr.free_symbols:
                if symbol.name in found:
                    continue
                known, hint = env.var_to_range.get(symbol), env.backed_var_to_val.get(symbol)
                text = f"symbols {symbol.name} = {'?' if hint is None else hint}"
                if known is not None:
                    text += f" in [{known.lower}, {known.upper}]"
                if hint is not None and symbol.is_integer and not symbol.is_positive:
                    text += " signed"
                found[symbol.name] = text
    return [text for _, text in sorted(found.items())]


def _symbolic_numbers(value: Any) -> Iterable[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _symbolic_numbers(item)
    elif isinstance(value, SYMBOLIC):
        yield value
    elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
        numbers = (*value.shape, *value.stride(), value.storage_offset())
        yield from (n for n in numbers if isinstance(n, torch.SymInt))


class SymbolTable:
    """Symbols of one parsed text, and the fake mode in which its values are rebuilt."""

    def __init__(self) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        self._symbols: dict[str, sympy.Symbol] = {}

    def declare(self, text: str) -> None:
        """Add a symbol by its statement. Raises ValueError when it is there already."""
        match = _SYMBOL.fullmatch(text)
        if match is None:
            raise ValueError("expected 'symbols NAME = HINT in [LOW, HIGH]'")
        name, number, *bounds, signed = match.groups()
        if name in self._symbols:
            raise ValueError(f"symbol {name} is declared twice")
        hint: Any = None if number == "?" else float(number) if "." in number else int(number)
        kind = {"real": True} if isinstance(hint, float) else {"integer": True}
        if hint is not None and "integer" in kind and not signed:
            kind["positive"] = True
        symbol = sympy.Symbol(name, **kind)
        self._symbols[name] = symbol
        self.env.var_to_sources[symbol] = [ConstantSource(name)]
        if hint is not None:
            self.env.add_backed_var_to_val(symbol, hint)
        low, high = (_bound(b) for b in bounds) if bounds[0] else (-int_oo, int_oo)
        self.env.var_to_range[symbol] = ValueRanges(low, high)

    def expression(self, text: str) -> Any:
        """`text` as a sympy expression over the declared symbols. Evaluates no code."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError:
            raise ValueError(f"{text.strip()!r} is not a size") from None
        return _to_sympy(tree, self._symbols)

    def integer(self, text: str) -> Any:
        """`text` as an int or a SymInt."""
        value = self.expression(text)
        if isinstance(value, (int, sympy.Integer)):
            return int(value)
        return self.env.create_symintnode(value, hint=self._hint(value))

    def symbolic(self, word: str, text: str) -> Any:
        """`sym(text)`, `symfloat(text)` or `symbool(text)`."""
        value = sympy.sympify(self.expression(text))
        if word == "sym":
            return self.integer(text)
        if word == "symfloat":
            return self.env.create_symfloatnode(value, hint=self._hint(value))
        return self.env.create_symboolnode(value)

    def _hint(self, value: Any) -> Any:
        known = self.env.backed_var_to_val
        if not value.free_symbols <= known.keys():
            return None
        number = value.xreplace(known)
        return int(number) if number.is_integer else float(number)

    def tensor(
        self,
        dtype: str,
        sizes: Sequence[str],
        strides: Sequence[str] | None,
        device: str,
        offset: str | None = None,
    ) -> torch.Tensor:
        """A fake tensor of this type; contiguous when `strides` is None."""
        expressions = [self.expression(s) for s in sizes]
        plain = [int(e) if isinstance(e, (int, sympy.Integer)) else e for e in expressions]
        steps = strides if strides is not None else map(str, contiguous_strides(plain))
        shape = [self.integer(s) for s in sizes]
        stepped = [self.integer(s) for s in steps]
        with self.mode, self.env.suppress_guards():
            tensor = torch.empty_strided(shape, stepped, dtype=dtype_named(dtype), device=device)
            if offset is None:
                return tensor
            start = self.integer(offset)
            storage = torch.empty(tensor.untyped_storage().nbytes() + start * tensor.itemsize)
            whole = storage.to(dtype=tensor.dtype, device=device)
            return whole.as_strided(shape, stepped, start)


def _bound(text: str) -> Any:
    words = {"int_oo": int_oo, "-int_oo": -int_oo, "oo": int_oo, "-oo": -int_oo}
    if text in words:
        return words[text]
    return sympy.Float(text) if "." in text else sympy.Integer(int(text))


def _to_sympy(tree: ast.expr, symbols: Mapping[str, sympy.Symbol]) -> Any:
    match tree:
        case ast.Constant(value=bool() | int() | float() as number):
            return sympy.sympify(number)
        case ast.Name(id=name):
            if name not in symbols:
                raise ValueError(f"symbol {name} is not declared")
            return symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_to_sympy(operand, symbols)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _to_sympy(left, symbols), _to_sympy(right, symbols)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return torch_sympy.FloorDiv(a, b)
                case ast.Div():
                    return a / b
                case ast.Pow():
                    return a**b
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            return _COMPARISONS[type(op)](_to_sympy(left, symbols), _to_sympy(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_to_sympy(a, symbols) for a in args))
    raise ValueError(f"{ast.unparse(tree)!r} is not a size")
