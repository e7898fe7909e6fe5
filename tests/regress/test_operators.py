"""Operators that were once compiled to something else than eager, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcompile.backend import Recording, recording

F = torch.nn.functional


def _both(
    function: Callable[..., Any], *inputs: Tensor, dynamic: bool = False
) -> tuple[Any, Any, Recording]:
    """Results and gradients in eager and compiled, inputs copied before each."""

    def run(call: Callable[..., Any]) -> list[Any]:
        copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        result = call(*copies)
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        through = [out for out in outputs if out.requires_grad]
        leaves = [x for x in copies if x.requires_grad]
        gradients: tuple[Any, ...] = ()
        if through and leaves:
            weights = [torch.ones_like(out) for out in through]
            gradients = torch.autograd.grad(through, leaves, weights, allow_unused=True)
        return [*outputs, *gradients, *copies]

    torch._dynamo.reset()
    eager = run(function)
    with recording() as record:
        got = run(torch.compile(function, backend="deepep", fullgraph=True, dynamic=dynamic))
    return eager, got, record


def _check(function: Callable[..., Any], *inputs: Tensor, dynamic: bool = False) -> Recording:
    eager, got, record = _both(function, *inputs, dynamic=dynamic)
    torch.testing.assert_close(got, eager, equal_nan=True)
    assert not [event for event in record.events if event[0] in ("fallback", "pass-failed")]
    return record


def _externs(record: Recording) -> set[str]:
    return {name for graph in record.graphs for name, _ in graph.externs}


def _random(*shape: int, gradient: bool = True) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_(gradient)


def test_the_conjugate_bit_is_kept() -> None:
    _check(lambda x: torch.fft.ifft(x), _random(5, 6))
    _check(lambda x: torch.view_as_complex(x).conj() * 2, _random(4, 2))


def test_a_view_that_reinterprets_keeps_the_memory_it_is_over() -> None:
    record = _check(lambda x: (x * 2).view(torch.int32) + 1, _random(8, gradient=False))
    assert all(graph.fallback is None for graph in record.graphs)


@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "argmax", "var", "logsumexp"])
def test_a_reduction_of_single_elements_is_in_a_kernel(reduce: str) -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        if reduce == "var":
            return y.var(1, correction=0)
        return getattr(y, reduce)(1)

    x = _random(6, 1, 5)
    with torch.no_grad():
        x[0, 0, 0], x[1, 0, 1] = math.inf, math.nan
    assert not _externs(_check(function, x))


def test_products_with_an_empty_dim() -> None:
    _check(lambda a, b: torch.relu(a @ b), _random(0, 3), _random(3, 4))


def test_an_effect_token_is_no_tensor_at_run_time() -> None:
    x = _random(4, 4)
    _check(lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(4)), x)


def test_reads_of_an_input_stay_before_its_mutation() -> None:
    x, mean, var = _random(3, 2, 4, 4), torch.zeros(2), torch.ones(2)
    for dynamic in (False, True):
        _check(lambda x, m, v: F.instance_norm(x, m, v, None, None), x, mean, var, dynamic=dynamic)


def test_a_symbolic_correction_counts() -> None:
    for correction in (0, 1, 3):
        _check(lambda x, c=correction: x.var(0, correction=c), _random(7, 5), dynamic=True)


def test_a_column_sum_of_a_constant_is_stored_in_every_column() -> None:
    _check(
        lambda x, y: torch.div(x, y, rounding_mode="trunc"), _random(5, 9), _random(9), dynamic=True
    )


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling_is_in_kernels(padding: int, ceil_mode: bool) -> None:
    x = _random(2, 3, 8, 9)

    def average(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 2, padding, ceil_mode, count_include_pad=False)

    def largest(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(x, 3, 2, padding, ceil_mode=ceil_mode, return_indices=True)

    assert not _externs(_check(average, x))
    special = x.detach().clone()
    special[0, 0], special[0, 1, 2, 3], special[1, 0, 0, 0] = -math.inf, math.nan, math.inf
    assert not _externs(_check(largest, special))


@pytest.mark.parametrize("start", [-3, -4, -40, 3, 5])
def test_symbolic_numbers_that_are_no_sizes_may_be_negative(start: int) -> None:
    def function(x: Tensor, k: int) -> tuple[Tensor, ...]:
        tail = (x * 2)[k:] + 1
        return tail, torch.slice_scatter(x * 3, (x * 5)[k:], 0, k), F.pad(x * 7, (k, 6))

    x = _random(12, 45, gradient=False)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="deepep", fullgraph=True, dynamic=True)
    for shift in (start, start - 1):
        torch.testing.assert_close(compiled(x, shift), function(x, shift), rtol=0, atol=0)


def test_a_result_whose_dtype_tracing_got_wrong_is_converted() -> None:
    """torch's fake running statistics in bf16 are f32: their memory was read as such."""

    def f(x: Tensor, weight: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        args = (x, weight, None, mean, var, False, 0.1, 1e-5)
        return torch.ops.aten._native_batch_norm_legit(*args)[0]

    x = torch.randn(3, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    mean = torch.tensor([0.5, 6.0], dtype=torch.bfloat16)
    var = torch.tensor([0.5, 4.0], dtype=torch.bfloat16)
    eager, got, _ = _both(f, x, weight, mean, var)
    for mine, theirs in zip(got, eager, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gather_by_an_index_of_another_rank_without_elements() -> None:
    function = torch.compile(lambda x, i: torch.gather(x.sin(), 0, i) * 2, backend="deepep")
    x, index = torch.randn(5), torch.empty((2, 0), dtype=torch.int64)
    with recording() as record:
        assert function(x, index).shape == (2, 0)
    assert not [event for event, _ in record.events if event in ("fallback", "pass-failed")]
