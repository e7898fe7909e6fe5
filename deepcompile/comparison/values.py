"""How far results are apart, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompile.comparison.observe import Observed
from deepcompile.pipeline.execute import TOLERANCE

_QUIET = 1e-2
_ROUNDINGS = 8
"""A gradient that is small all over, beside the largest one, may be no more than rounding errors of
larger numbers. So it is taken for at least this share of the largest one, and where the tolerance
is near to the last digit for so many units of that digit."""


@dataclass(frozen=True)
class Tolerance:
    """Errors up to `atol + rtol * largest magnitude of the reference` are none.

    `rtol` None is by dtype, as when passes are verified.
    """

    rtol: float | None = None
    atol: float = 0.0

    def allowed(self, dtype: torch.dtype, largest: float, beside: float = 0.0) -> float:
        """The largest absolute error for numbers of this size beside others that are larger."""
        rtol = TOLERANCE.get(dtype, 0.0) if self.rtol is None else self.rtol
        least = _QUIET * rtol
        if dtype.is_floating_point or dtype.is_complex:
            least = min(max(least, _ROUNDINGS * torch.finfo(dtype).eps), rtol)
        return self.atol + max(rtol * largest, least * beside)


@dataclass(frozen=True)
class Difference:
    """One tensor of both ways: errors, and what is wrong with it.

    Attributes:
        max_error: the largest absolute one; None where tensors cannot be compared.
        relative: to the largest magnitude of the reference.
        allowed: for `max_error`.
        problem: empty where the tensors agree.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    max_error: float | None
    relative: float | None
    allowed: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


def differences(expected: Observed, actual: Observed, tolerance: Tolerance) -> Iterator[Difference]:
    """One for each tensor, in order: outputs, gradients, what was written into."""
    beside = max(map(_largest, expected.gradients.values()), default=0.0)
    for one, other, most in (
        (expected.outputs, actual.outputs, 0.0),
        (expected.gradients, actual.gradients, beside),
        (expected.written, actual.written, 0.0),
    ):
        yield from _of_group(one, other, tolerance, most)


def _of_group(
    expected: Mapping[str, Tensor],
    actual: Mapping[str, Tensor],
    tolerance: Tolerance,
    beside: float,
) -> Iterator[Difference]:
    for name in dict.fromkeys((*expected, *actual)):
        if name in expected and name in actual:
            yield _compare(name, expected[name], actual[name], tolerance, beside)
            continue
        tensor, where = (
            (expected[name], "only in eager")
            if name in expected
            else (actual[name], "only compiled")
        )
        yield Difference(name, _dtype(tensor), tuple(tensor.shape), None, None, 0.0, where)


def _compare(
    name: str, expected: Tensor, actual: Tensor, tolerance: Tolerance, beside: float
) -> Difference:
    shape = tuple(expected.shape)
    largest = _largest(expected)
    allowed = tolerance.allowed(expected.dtype, largest, beside)

    def found(error: float | None, problem: str) -> Difference:
        relative = (
            None if error is None else error / largest if largest else math.copysign(error, 1)
        )
        return Difference(name, _dtype(expected), shape, error, relative, allowed, problem)

    if (expected.dtype, shape) != (actual.dtype, tuple(actual.shape)):
        return found(None, f"is {_dtype(actual)}{list(actual.shape)} when compiled")
    a, b = _wide(expected), _wide(actual)
    if not torch.equal(a.isnan(), b.isnan()):
        return found(None, "is NaN at other places when compiled")
    infinite = a.isinf()
    if not torch.equal(a[infinite], b[infinite]) or bool((b.isinf() & ~infinite).any()):
        return found(None, "is infinite at other places when compiled")
    finite = ~(infinite | a.isnan())
    error = float((a[finite] - b[finite]).abs().max()) if bool(finite.any()) else 0.0
    return found(error, "" if error <= allowed else f"differs by {error:.3g}, over {allowed:.3g}")


def _wide(tensor: Tensor) -> Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().cpu().to(wide)


def _largest(tensor: Tensor) -> float:
    numbers = _wide(tensor).abs()
    finite = numbers[numbers.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
