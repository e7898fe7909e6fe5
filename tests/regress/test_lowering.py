"""Defects of the scalar rules that random graphs found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

U8 = torch.tensor([0, 3, 255], dtype=torch.uint8)
I8 = torch.tensor([-128, 5], dtype=torch.int8)


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda x: x.clamp(-1, 3), U8),
        (lambda x: x.clamp(min=-1), U8),
        (lambda x: torch.maximum(x, torch.tensor(-1)), U8),
        (lambda x: torch.where(x > 1, x, -1).sum(), U8),
        (lambda x: x.masked_fill(x > 1, -1).amax(), U8),
        (lambda x: torch.where(x > 1, -1, x) // 2, U8),
        (lambda x: (x + x).abs().amax(), I8),
        (lambda x: (x * 3).maximum(x).sum(), I8),
    ],
)
def test_numbers_wrap_in_narrow_integers(function: Callable[..., Any], x: Tensor) -> None:
    """A bound of -1 is 255 in uint8, in eager; registers are wider and kept it negative."""
    torch._dynamo.reset()
    found = torch.compile(function, backend="deepep", options={"cache": False})(x)
    expected = function(x)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
