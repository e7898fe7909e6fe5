"""Limits on kernels and on recomputation: what they hold back runs as ATen ops, to the same end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deepcompile.backend import deepep
from deepcompile.pipeline.context import process_counters
from deepcompile.recording import Recording, recording


@pytest.fixture(autouse=True)
def _count_from_zero() -> Iterator[None]:
    torch._dynamo.reset()
    process_counters.cache_clear()
    yield
    process_counters.cache_clear()


def step(x: Tensor, w: Tensor, **options: object) -> tuple[list[Tensor], Recording]:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(torch.softmax(x @ w, -1).sin() @ w).square().sum()

    given = [x.detach().requires_grad_(), w.detach().requires_grad_()]
    compiled = function
    if options:

        def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
            return deepep(gm, inputs, options={"strict": True, **options})

        compiled = torch.compile(function, backend=backend, dynamic=options.get("opt_limit") == 5)
    with recording() as record:
        loss = compiled(*given)
        loss.backward()
    return [loss.detach(), *(v.grad for v in given)], record  # type: ignore[list-item]


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 8, generator=generator), torch.randn(8, 8, generator=generator)


@pytest.mark.parametrize("limit", [0, 1, 2, 100])
def test_only_so_many_kernels_are_generated(limit: int) -> None:
    expected, _ = step(*inputs())
    whole, _ = step(*inputs(), numerics="fast", kernel_limit=100)
    process_counters.cache_clear()
    torch._dynamo.reset()
    found, record = step(*inputs(), kernel_limit=limit)
    for a, b, c in zip(expected, found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)
    events = [fields for kind, fields in record.events if kind == "kernel"]
    numbers = [fields["number"] for fields in events]
    assert len(events) > 2
    assert numbers == [n + 1 if n < limit else None for n in range(len(events))]
    kernels = sum(len(graph.kernels) for graph in record.graphs)
    assert kernels == min(limit, len(events))


@pytest.mark.parametrize("limit", [0, 4, 5, 1000])
def test_recomputation_counts_like_a_pass(limit: int) -> None:
    expected, _ = step(*inputs())
    found, record = step(*inputs(), opt_limit=limit)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    ((_, fields),) = [event for event in record.events if event[0] == "recompute"]
    # After the four joint passes, before those of the halves.
    assert fields["number"] == (5 if limit >= 5 else None)


def test_a_budget_is_held_back_too() -> None:
    expected, _ = step(*inputs())
    found, record = step(*inputs(), opt_limit=0, memory_budget="1GiB")
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not [event for event in record.events if event[0] == "memory-budget"]


def test_a_body_for_many_rows_runs_as_aten_ops() -> None:
    parameters = [torch.randn(n) for n in (5, 7, 9, 11)]
    gradients = [torch.randn_like(p) for p in parameters]

    def update(parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        return [p - 0.1 * F.softsign(g) for p, g in zip(parameters, gradients, strict=True)]

    compiled = torch.compile(update, backend=deepep, options={"strict": True, "kernel_limit": 0})
    for a, b in zip(compiled(parameters, gradients), update(parameters, gradients), strict=True):
        torch.testing.assert_close(a, b)
