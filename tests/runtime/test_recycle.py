"""Memory of outputs is used again only when nobody can see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcompile.runtime.recycle import SMALLEST, OutputPool

COUNT = SMALLEST // 4


def output(pool: OutputPool) -> Tensor:
    return pool.empty((COUNT,), (1,), torch.float32, SMALLEST)


def test_memory_that_nobody_holds_is_used_again() -> None:
    pool = OutputPool(1 << 30)
    address = output(pool).data_ptr()
    assert output(pool).data_ptr() == address


@pytest.mark.parametrize(
    "hold",
    [
        lambda t: t,
        lambda t: t[5:9],
        lambda t: t.numpy(),
        lambda t: t.untyped_storage(),
        lambda t: t.view(torch.int32).detach(),
        lambda t: (t.requires_grad_() * 1).grad_fn,
    ],
    ids=["tensor", "view", "array", "storage", "other dtype", "autograd"],
)
def test_whoever_holds_it_in_any_way_keeps_it(hold: Callable[[Tensor], Any]) -> None:
    pool = OutputPool(1 << 30)
    made = output(pool)
    address = made.data_ptr()
    held = hold(made)
    del made
    other = output(pool)
    assert other.data_ptr() != address
    del held
    again = output(pool)
    assert again.data_ptr() == address


def test_memory_that_was_resized_is_left_alone() -> None:
    pool = OutputPool(1 << 30)
    made = output(pool)
    made.untyped_storage().resize_(16)
    del made
    assert output(pool).untyped_storage().nbytes() == SMALLEST


def test_the_limit_holds() -> None:
    pool = OutputPool(2 * SMALLEST)
    kept = [output(pool) for _ in range(4)]
    assert pool.held == 2 * SMALLEST
    kept.clear()
    pool.clear()
    assert pool.held == 0
