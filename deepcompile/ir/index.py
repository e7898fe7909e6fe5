"""Index and size expressions: integer polynomials over axes, sizes and loaded values.

`Index` is the one canonical form for sizes, strides and addresses: a sum of integer coefficients
times products of atoms. An atom is a name (an axis such as `p0`, a size such as `s3`, a value
such as `v12`) or a floor division or remainder that did not simplify. Equal expressions are
equal objects in print and in comparison, which is all that fusion needs to know that two reads
meet at the same place.

Sizes are taken to be at least 1 where a proof needs it: a loop over an empty axis never
evaluates its indices, so a size of 0 at run time cannot make such a proof matter."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SIGNED = "i_"
"""What the names of numbers begin with that may be 0 or negative, unlike sizes."""


@dataclass(frozen=True)
class Divided:
    """`numerator // denominator` or `numerator % denominator` (floor semantics) kept as an atom."""

    op: str  # "floordiv" | "mod"
    numerator: Index
    denominator: Index

    def __str__(self) -> str:
        return f"{self.op}({self.numerator}, {self.denominator})"


Atom = str | Divided
Monomial = tuple[Atom, ...]


class Index:
    """A canonical integer polynomial. Immutable and hashable; build with `of`, `+`, `-`, `*`."""

    __slots__ = ("_hash", "terms")

    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    @staticmethod
    def of(value: int | str | Index) -> Index:
        """An `Index` from an int, an atom's name or an `Index`."""
        if isinstance(value, Index):
            return value
        if isinstance(value, str):
            return Index((((value,), 1),))
        return _constant(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Index):
            return self._hash == other._hash and self.terms == other.terms
        if isinstance(other, int):
            return self.terms == _constant(other).terms
        return NotImplemented

    def __add__(self, other: int | Index) -> Index:
        other = Index.of(other)
        if not other.terms:
            return self
        if not self.terms:
            return other
        total = dict(self.terms)
        for monomial, coefficient in other.terms:
            total[monomial] = total.get(monomial, 0) + coefficient
        return _from_dict(total)

    __radd__ = __add__

    def __neg__(self) -> Index:
        return Index(tuple((monomial, -coefficient) for monomial, coefficient in self.terms))

    def __sub__(self, other: int | Index) -> Index:
        return self + (-Index.of(other))

    def __rsub__(self, other: int | Index) -> Index:
        return Index.of(other) + (-self)

    def __mul__(self, other: int | Index) -> Index:
        other = Index.of(other)
        if other.terms == _ONE_TERMS:
            return self
        if self.terms == _ONE_TERMS:
            return other
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in other.terms:
                product = left if not right else right if not left else _sorted(left + right)
                total[product] = total.get(product, 0) + a * b
        return _from_dict(total)

    __rmul__ = __mul__

    def constant(self) -> int | None:
        """The value when this is a plain integer, else None."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    def names(self) -> frozenset[str]:
        """Every axis, size and value name this depends on."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    found |= atom.numerator.names() | atom.denominator.names()
        return frozenset(found)

    def coefficient(self, name: str) -> Index | None:
        """The factor of `name` when this is linear in it (0 if absent), else None."""
        rest: dict[Monomial, int] = {}
        for monomial, coefficient in self.terms:
            count = 0
            for atom in monomial:
                if atom == name:
                    count += 1
                elif not isinstance(atom, str) and name in (
                    atom.numerator.names() | atom.denominator.names()
                ):
                    return None
            if count > 1:
                return None
            if count == 1:
                reduced = list(monomial)
                reduced.remove(name)
                rest[tuple(reduced)] = rest.get(tuple(reduced), 0) + coefficient
        return _from_dict(rest)

    def substitute(self, values: Mapping[str, Index], extents: Mapping[str, Index]) -> Index:
        """This with names replaced, divisions simplified anew under `extents` (axis -> size)."""
        if not any(name in values for name in self.names()):
            return self
        result = ZERO
        for monomial, coefficient in self.terms:
            term = _constant(coefficient)
            for atom in monomial:
                if isinstance(atom, str):
                    term = term * values.get(atom, Index.of(atom))
                    continue
                numerator = atom.numerator.substitute(values, extents)
                denominator = atom.denominator.substitute(values, extents)
                divide = floordiv if atom.op == "floordiv" else mod
                term = term * divide(numerator, denominator, extents)
            result = result + term
        return result

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The value under `values` (name -> int or integer array)."""
        result: Any = 0
        for monomial, coefficient in self.terms:
            term: Any = coefficient
            for atom in monomial:
                if isinstance(atom, str):
                    term = term * values[atom]
                    continue
                numerator = atom.numerator.evaluate(values)
                denominator = atom.denominator.evaluate(values)
                term = term * (
                    numerator // denominator if atom.op == "floordiv" else numerator % denominator
                )
            result = result + term
        return result

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom in monomial]
            magnitude = abs(coefficient)
            if magnitude != 1 or not factors:
                factors.insert(0, str(magnitude))
            sign = "-" if coefficient < 0 else "+"
            parts.append(f"{sign} {'*'.join(factors)}")
        text = " ".join(parts)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]

    def __repr__(self) -> str:
        return f"Index({self})"


def _sorted(atoms: Monomial) -> Monomial:
    return tuple(sorted(atoms, key=str))


def _key(term: tuple[Monomial, int]) -> tuple[bool, str]:
    monomial = term[0]
    return (not monomial, "*".join(map(str, monomial)))


def _from_dict(total: dict[Monomial, int]) -> Index:
    terms = [(monomial, c) for monomial, c in total.items() if c]
    if len(terms) > 1:
        terms.sort(key=_key)
    return Index(tuple(terms))


@lru_cache(maxsize=4096)
def _constant(value: int) -> Index:
    return Index((((), value),)) if value else Index(())


_ONE_TERMS = (((), 1),)
ZERO = _constant(0)
ONE = _constant(1)


def product(sizes: tuple[Index, ...] | list[Index]) -> Index:
    """The product of sizes (1 for none)."""
    result = ONE
    for size in sizes:
        result = result * size
    return result


def contiguous_strides(shape: tuple[Index, ...]) -> tuple[Index, ...]:
    """Row-major strides, in elements, of a tensor of `shape`."""
    strides: list[Index] = []
    stride = ONE
    for size in reversed(shape):
        strides.append(stride)
        stride = stride * size
    return tuple(reversed(strides))


def exact_divide(numerator: Index, denominator: Index) -> Index | None:
    """`numerator / denominator` when it is exact and `denominator` is one monomial, else None."""
    if denominator == ONE:
        return numerator
    if len(denominator.terms) != 1:
        return ONE if numerator == denominator else None
    monomial, divisor = denominator.terms[0]
    total: dict[Monomial, int] = {}
    for atoms, coefficient in numerator.terms:
        if coefficient % divisor:
            return None
        remaining = list(atoms)
        for atom in monomial:
            if atom not in remaining:
                return None
            remaining.remove(atom)
        total[tuple(remaining)] = total.get(tuple(remaining), 0) + coefficient // divisor
    return _from_dict(total)


def _bounds(index: Index, extents: Mapping[str, Index]) -> tuple[Index, Index] | None:
    """Polynomials in sizes below and above `index`, or None when unknown."""
    low, high = ZERO, ZERO
    for monomial, coefficient in index.terms:
        lower, upper = ONE, ONE
        for atom in monomial:
            if isinstance(atom, str):
                if atom in extents:
                    lower, upper = ZERO, upper * (extents[atom] - 1)
                elif atom[0] not in "su":
                    return None  # a value, or an axis of unknown extent; sizes are s0, u0, ...
                else:
                    lower, upper = lower * Index.of(atom), upper * Index.of(atom)
                continue
            inner = _bounds(atom.numerator, extents)
            if inner is None or not _non_negative(inner[0]):
                return None
            if atom.op == "mod":
                lower, upper = ZERO, upper * (atom.denominator - 1)
            else:
                divisor = atom.denominator.constant()
                top = inner[1].constant()
                if divisor is None or top is None:
                    lower, upper = ZERO, upper * inner[1]
                else:
                    lower, upper = ZERO, upper * _constant(top // divisor)
        if coefficient >= 0:
            low, high = low + lower * coefficient, high + upper * coefficient
        else:
            low, high = low + upper * coefficient, high + lower * coefficient
    return low, high


@lru_cache(maxsize=4096)
def _non_negative(index: Index) -> bool:
    """Whether a polynomial in sizes is >= 0 for all sizes >= 1 (sufficient test)."""
    value = index.constant()
    if value is not None:
        return value >= 0
    for monomial, _ in index.terms:
        if any(not isinstance(atom, str) or atom.startswith(SIGNED) for atom in monomial):
            return False
    shifted = ZERO
    for monomial, coefficient in index.terms:
        term = _constant(coefficient)
        for atom in monomial:
            term = term * (Index((((atom,), 1),)) + 1)
        shifted = shifted + term
    return all(coefficient >= 0 for _, coefficient in shifted.terms)


def in_bounds(index: Index, low: Index, high: Index, extents: Mapping[str, Index]) -> bool:
    """Whether `low <= index < high` is provable."""
    bounds = _bounds(index, extents)
    if bounds is None:
        return False
    return _non_negative(bounds[0] - low) and _non_negative(high - 1 - bounds[1])


def out_of_bounds(index: Index, low: Index, high: Index, extents: Mapping[str, Index]) -> bool:
    """Whether `index < low or index >= high` is provable."""
    bounds = _bounds(index, extents)
    if bounds is None:
        return False
    return _non_negative(low - 1 - bounds[1]) or _non_negative(bounds[0] - high)


def _split(index: Index, divisor: Index) -> tuple[Index, Index]:
    """`index` as `quotient * divisor + rest`, moving what divides exactly into the quotient."""
    quotient, rest = ZERO, ZERO
    for term in index.terms:
        single = Index((term,))
        divided = exact_divide(single, divisor)
        if divided is not None:
            quotient = quotient + divided
            continue
        constant, modulus = single.constant(), divisor.constant()
        if constant is not None and modulus:
            quotient = quotient + constant // modulus
            rest = rest + constant % modulus
            continue
        rest = rest + single
    return quotient, rest


def floordiv(index: Index, divisor: Index, extents: Mapping[str, Index]) -> Index:
    """`index // divisor` (floor), simplified under axis extents; `divisor` is positive."""
    if divisor == ONE:
        return index
    quotient, rest = _split(index, divisor)
    if rest == ZERO or in_bounds(rest, ZERO, divisor, extents):
        return quotient
    if len(rest.terms) == 1 and rest.terms[0][1] == 1 and len(rest.terms[0][0]) == 1:
        inner = rest.terms[0][0][0]
        if isinstance(inner, Divided) and inner.op == "floordiv":
            return quotient + floordiv(inner.numerator, inner.denominator * divisor, extents)
    return quotient + Index((((Divided("floordiv", rest, divisor),), 1),))


def mod(index: Index, divisor: Index, extents: Mapping[str, Index]) -> Index:
    """`index % divisor`, simplified under axis extents; `divisor` is positive."""
    if divisor == ONE:
        return ZERO
    _, rest = _split(index, divisor)
    if rest == ZERO or in_bounds(rest, ZERO, divisor, extents):
        return rest
    return Index((((Divided("mod", rest, divisor),), 1),))


def parse_index(text: str) -> Index:
    """The `Index` that prints as `text`.

    Raises:
        ValueError: when the text is no such expression.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not an index expression: {text!r}") from error
    return _build(tree, text)


def _build(tree: ast.expr, text: str) -> Index:
    match tree:
        case ast.Constant(value=int(value)):
            return _constant(value)
        case ast.Name(id=name):
            return Index.of(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_build(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_build(left, text), _build(right, text))
        case ast.Call(func=ast.Name(id="floordiv" | "mod" as name), args=[a, b]):
            return Index((((Divided(name, _build(a, text), _build(b, text)),), 1),))
    raise ValueError(f"not an index expression: {text!r}")


_OPERATORS: dict[type[ast.operator], Callable[[Index, Index], Index]] = {
    ast.Add: Index.__add__,
    ast.Sub: Index.__sub__,
    ast.Mult: Index.__mul__,
}
