"""Batch nodes as steps: intermediates, results, aliases and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcompile.backend import CompiledGraph, recording
from deepcompile.codegen.steps import KernelStep, TableStep


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def run_both(function: Callable[..., Any], *args: Tensor) -> CompiledGraph:
    """Run in eager and compiled on copies; results and arguments must agree to the bit."""
    expected, found = [a.clone() for a in args], [a.clone() for a in args]
    with torch.no_grad(), recording() as record:
        wanted = function(*expected)
        compiled = torch.compile(function, backend="deepep", options={"strict": True})
        for _ in range(2):
            for tensor, start in zip(found, args, strict=True):
                tensor.copy_(start)
            result = compiled(*found)
            torch.testing.assert_close((result, found), (wanted, expected), rtol=0, atol=0)
    (graph,) = record.graphs
    return graph


def steps(graph: CompiledGraph) -> list[type]:
    assert graph.spec is not None
    return [type(step) for step in graph.spec.steps]


def test_tensors_that_change_places_go_through_memory_of_the_batch() -> None:
    def swap(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
        for x, y in ((a, b), (c, d)):
            old = x.clone()
            x.copy_(y)
            y.copy_(old)

    graph = run_both(swap, torch.randn(3, 40), torch.randn(3, 40), torch.randn(7), torch.randn(7))
    assert set(steps(graph)) == {TableStep}


def test_results_are_tensors_of_their_own() -> None:
    def step(p: Tensor, q: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        first, second = g * 2 + p, h * 2 + q
        p.sub_(first)
        q.sub_(second)
        return second, p, first

    graph = run_both(step, torch.randn(4, 5), torch.randn(9), torch.randn(4, 5), torch.randn(9))
    assert TableStep in steps(graph)


def test_counters() -> None:
    def count(a: Tensor, b: Tensor, c: Tensor) -> None:
        for counter in (a, b, c):
            counter.add_(1)

    graph = run_both(count, *(torch.tensor(number) for number in range(3)))
    assert steps(graph) == [TableStep]


def test_other_work_stands_beside_a_batch() -> None:
    def step(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
        p.mul_(0.5)
        q.mul_(0.5)
        return x.exp().sum(0)

    found = steps(run_both(step, torch.randn(4), torch.randn(3, 3), torch.ones(2, 2)))
    assert found == [TableStep, KernelStep]


@pytest.mark.parametrize("start", [12, 8], ids=["apart", "overlapping"])
def test_parts_of_one_storage(start: int) -> None:
    def step(a: Tensor, b: Tensor) -> None:
        a.sub_(1)
        b.sub_(1)

    flat = torch.ones(24)
    with torch.no_grad():
        compiled = torch.compile(step, backend="deepep", options={"strict": True})
        compiled(flat[:12], flat[start : start + 12])
    expected = torch.ones(24)
    step(expected[:12], expected[start : start + 12])
    assert torch.equal(flat, expected)


def test_columns_of_a_matrix_and_symbolic_sizes_are_right_without_a_batch() -> None:
    def step(a: Tensor, b: Tensor) -> None:
        a.mul_(2)
        b.mul_(2)

    compiled = torch.compile(step, backend="deepep", options={"strict": True})
    with torch.no_grad():
        for rows in (3, 4, 5):
            wide, long = torch.ones(rows, 8), torch.ones(rows + 7)
            compiled(wide[:, ::2], long)
            assert wide.sum() == 12 * rows
            assert long.sum() == 2 * (rows + 7)
