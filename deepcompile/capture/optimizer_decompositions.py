"""What optimizers are written in: updates with a scaled operand, and ops on lists of tensors.

`torch.optim` writes `p.add_(g, alpha=-lr)` and its lists `torch._foreach_add_(ps, gs, alpha=-lr)`.
An op on a list becomes one op a tensor: equal updates of many tensors are found again later, so
`foreach` and the plain loop compile to the same kernels. Scaling by a number that the compile does
not know becomes a multiplication of its own, because torch turns a changing Python float (a
learning rate) into an input only where it is a plain operand: as `alpha` it is compiled in, and
each new value compiles again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten

_UNARY = """
    abs acos asin atan ceil clone cos cosh erf erfc exp expm1 floor frac lgamma log log10 log1p log2
    neg reciprocal round rsqrt sigmoid sign sin sinh sqrt tan tanh trunc
"""
_BINARY = """
    add sub mul div pow clamp_max clamp_min maximum minimum
"""
_WITH_NUMBER = {"maximum": "clamp_min", "minimum": "clamp_max"}
"""Functions that take tensors only, and what they are called with a number."""

_FROM_TORCH: dict[Any, Callable[..., Tensor]] = dict(
    get_decompositions([aten.addcmul, aten.addcdiv, aten.lerp])
)


def scaled_sum(x: Tensor, y: Any, *, alpha: Any = 1) -> Any:
    """`x + alpha * y` for an `alpha` that is known only when the graph runs."""
    if not isinstance(alpha, torch.SymFloat):
        return NotImplemented
    return x + y * alpha


def scaled_difference(x: Tensor, y: Any, *, alpha: Any = 1) -> Any:
    """`x - alpha * y` for an `alpha` that is known only when the graph runs."""
    if not isinstance(alpha, torch.SymFloat):
        return NotImplemented
    return x - y * alpha


def multiply_add(left: Any, right: Any, x: Any) -> Any:
    """`left * right + x` where one of them is a number known only when the graph runs."""
    if not any(isinstance(value, torch.SymFloat) for value in (left, right, x)):
        return NotImplemented
    return left * right + x


def addcmul(x: Tensor, left: Tensor, right: Tensor, *, value: Any = 1) -> Any:
    """`x + value * left * right`, rounded as ATen's kernels for the CPU round."""
    if not _plain(x, left, right):
        return _FROM_TORCH[aten.addcmul.default](x, left, right, value=value)
    return x + _scaled(left, value) * right


def addcdiv(x: Tensor, left: Tensor, right: Tensor, *, value: Any = 1) -> Any:
    """`x + value * left / right`, rounded as ATen's kernels for the CPU round."""
    if not _plain(x, left, right):
        return _FROM_TORCH[aten.addcdiv.default](x, left, right, value=value)
    return x + _scaled(left, value) / right


def lerp(start: Tensor, end: Tensor, weight: Any) -> Any:
    """`start + weight * (end - start)`, from the end that is nearer."""
    if not _plain(start, end) or not isinstance(weight, int | float):
        return _FROM_TORCH[aten.lerp.Scalar](start, end, weight)
    if abs(weight) < 0.5:
        return start + (end - start) * weight
    return end - (end - start) * (1 - weight)


def _plain(*tensors: Tensor) -> bool:
    """Whether ATen computes in the dtype of the tensors itself."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes in ({torch.float32}, {torch.float64})


def _scaled(x: Tensor, value: Any) -> Tensor:
    return x if isinstance(value, int | float) and value == 1 else x * value


# -- lists -------------------------------------------------------------------------------------


def _overload(name: str, overload: str) -> Any:
    return getattr(getattr(aten, name, None), overload, None)


def _each(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """`function` of each tensor; what follows is the same for all."""

    def run(tensors: Sequence[Tensor], *rest: Any, **named: Any) -> list[Tensor]:
        return [function(tensor, *rest, **named) for tensor in tensors]

    return run


def _pairs(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """`function` of each tensor and its partner in a second list."""

    def run(tensors: Sequence[Tensor], others: Sequence[Any], **named: Any) -> list[Tensor]:
        return [function(a, b, **named) for a, b in zip(tensors, others, strict=True)]

    return run


def _triples(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """`function` of each tensor and its partners, then one value for all."""

    def run(
        tensors: Sequence[Tensor], second: Sequence[Tensor], third: Sequence[Tensor], value: Any = 1
    ) -> list[Tensor]:
        rows = zip(tensors, second, third, strict=True)
        return [function(a, b, c, value=value) for a, b, c in rows]

    return run


def _quadruples(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """`function` of each tensor, its partners, and its own value."""

    def run(
        tensors: Sequence[Tensor],
        second: Sequence[Tensor],
        third: Sequence[Tensor],
        values: Sequence[Any],
    ) -> list[Tensor]:
        rows = zip(tensors, second, third, values, strict=True)
        return [function(a, b, c, value=value) for a, b, c, value in rows]

    return run


def _tensor_values(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """As `_quadruples`, the values being the elements of one tensor."""

    def run(
        tensors: Sequence[Tensor], second: Sequence[Tensor], third: Sequence[Tensor], values: Tensor
    ) -> list[Tensor]:
        return _quadruples(function)(tensors, second, third, list(values.unbind()))

    return run


def _lerp_lists(
    tensors: Sequence[Tensor], ends: Sequence[Tensor], weights: Sequence[Any]
) -> list[Tensor]:
    rows = zip(tensors, ends, weights, strict=True)
    return [torch.lerp(start, end, weight) for start, end, weight in rows]


def _lerp_scalar(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: Any) -> list[Tensor]:
    return _lerp_lists(tensors, ends, [weight] * len(tensors))


def _powers(base: Any, exponents: Sequence[Tensor]) -> list[Tensor]:
    return [torch.pow(base, exponent) for exponent in exponents]


def _copies(
    tensors: Sequence[Tensor], sources: Sequence[Tensor], non_blocking: bool = False
) -> list[Tensor]:
    return [aten.copy.default(a, b) for a, b in zip(tensors, sources, strict=True)]


def _list_table() -> dict[Any, Callable[..., Any]]:
    found: dict[Any, Callable[..., Any]] = {}
    for name in _UNARY.split():
        found[_overload(f"_foreach_{name}", "default")] = _each(getattr(torch, name))
    for name in _BINARY.split():
        function = getattr(torch, name)
        with_number = getattr(torch, _WITH_NUMBER.get(name, name))
        found[_overload(f"_foreach_{name}", "Scalar")] = _each(with_number)
        found[_overload(f"_foreach_{name}", "Tensor")] = _each(function)
        found[_overload(f"_foreach_{name}", "List")] = _pairs(function)
        found[_overload(f"_foreach_{name}", "ScalarList")] = _pairs(with_number)
    for name in ("addcmul", "addcdiv"):
        function = getattr(torch, name)
        found[_overload(f"_foreach_{name}", "Scalar")] = _triples(function)
        found[_overload(f"_foreach_{name}", "ScalarList")] = _quadruples(function)
        found[_overload(f"_foreach_{name}", "Tensor")] = _tensor_values(function)
    found[_overload("_foreach_lerp", "Scalar")] = _lerp_scalar
    found[_overload("_foreach_lerp", "List")] = _lerp_lists
    found[_overload("_foreach_lerp", "ScalarList")] = _lerp_lists
    found[_overload("_foreach_pow", "ScalarAndTensor")] = _powers
    found[_overload("_foreach_copy", "default")] = _copies
    found[_overload("_foreach_zero", "default")] = _each(torch.zeros_like)
    found.pop(None, None)
    return found


TABLE: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: scaled_sum,
    aten.sub.Tensor: scaled_difference,
    aten.addcmul.default: addcmul,
    aten.addcdiv.default: addcdiv,
    aten.lerp.Scalar: lerp,
    **_list_table(),
}
"""ATen overload to the function that takes it apart."""
