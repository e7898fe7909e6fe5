"""Defects of the C++ emitter that random graphs found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deepcompile import backend
from deepcompile.ir.nest import Store
from deepcompile.ir.verify import verify_kernel


def compiled(function: Callable[..., Any], *inputs: torch.Tensor, dynamic: bool = False) -> Any:
    """What the compiled function gives, with no part of it left to eager."""
    torch._dynamo.reset()
    with backend.recording() as record:
        result = torch.compile(
            function, backend="deepep", fullgraph=True, dynamic=dynamic, options={"cache": False}
        )(*inputs)
    assert [graph.fallback for graph in record.graphs] == [None] * len(record.graphs)
    return result


@pytest.mark.parametrize("rows", [100, 5])
def test_any_and_all_of_columns(rows: int) -> None:
    """Column accumulators of booleans did not compile: registers and memory differ in type."""

    def f(x: torch.Tensor) -> Any:
        return (x > -2).all(0), (x > 2).any(0), (x > 2).sum(0)

    for width in (2, 40):
        x = torch.randn(rows, width)
        for found, expected in zip(compiled(f, x), f(x), strict=True):
            assert torch.equal(found, expected)


def test_two_loops_over_one_concatenation() -> None:
    """Two loops over a row with settled range tests declared the same names."""

    def f(x: torch.Tensor) -> Any:
        return torch.cat([x, x], 0).std([0])

    x = torch.randn(2, dtype=torch.float64)
    torch.testing.assert_close(compiled(f, x), f(x))


def test_a_buffer_shape_may_use_a_size_of_its_own() -> None:
    """A size that occurs in the shape of a buffer only was missing from the kernel's sizes."""

    def f(x: torch.Tensor) -> Any:
        v = torch.exp(-x.abs())
        return torch.cat([x.relu(), v.sum([0], keepdim=True)], 0)

    x = torch.randn(5, 1)
    with backend.recording() as record:
        torch.testing.assert_close(compiled(f, x, dynamic=True), f(x))
    for kernel in record.graphs[0].kernels:
        verify_kernel(kernel.nest)


def test_a_float_computed_from_sizes() -> None:
    """A gradient divided by a number of elements sent the whole graph to eager."""

    def f(x: torch.Tensor) -> Any:
        return x.var(0).sum()

    x = torch.randn(5, 7, requires_grad=True)
    with backend.recording() as record:
        compiled(f, x, dynamic=True).backward()
    assert [graph.fallback for graph in record.graphs] == [None, None]
    gradient, x.grad = x.grad, None
    f(x).backward()
    torch.testing.assert_close(gradient, x.grad)


@pytest.mark.parametrize("width", [7, 64])
def test_a_write_into_an_input_comes_after_the_last_pass_over_the_row(width: int) -> None:
    """Later passes over a row read again what an earlier one had overwritten."""

    def variance(x: torch.Tensor) -> Any:
        v = x.var([1], correction=0)
        x.copy_(x + x)
        return v

    def softmax(x: torch.Tensor) -> Any:
        y = x.softmax(-1)
        x.mul_(3)
        return y

    for f in (variance, softmax):
        x = torch.randn(40, width)
        y = x.clone()
        torch.testing.assert_close(compiled(f, y), f(x))
        torch.testing.assert_close(y, x)


def test_ops_that_count_offsets_from_the_start_of_the_storage() -> None:
    """Gradients of as_strided were written to another place of the arena (Swin's were all zero)."""

    def f(x: torch.Tensor, m: torch.Tensor) -> Any:
        sums = (x @ x).sin() @ x
        base = (sums @ x).cos()
        scattered = torch.as_strided_scatter(base, m @ m, [2, 2], [3, 1], 5)
        default = torch.as_strided_scatter(base, m @ m, [2, 2], [3, 1])
        copied = torch.as_strided_copy(base, [3, 2], [2, 1], 4)
        return scattered * 2, default + 1, copied * 3, sums.exp()

    x, m = torch.randn(8, 8), torch.randn(2, 2)
    for dynamic in (False, True):
        for found, expected in zip(compiled(f, x, m, dynamic=dynamic), f(x, m), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_offsets_of_views_that_are_inputs(dynamic: bool) -> None:
    """The same with a tensor that starts inside its storage already in eager."""

    def f(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return torch.as_strided_scatter(x, m, [2, 2], [3, 1], 13)

    x, m = torch.randn(9, 8)[1:], torch.randn(2, 2)
    torch.testing.assert_close(compiled(f, x, m, dynamic=dynamic), f(x, m))


def test_nothing_is_written_into_a_tensor_without_elements() -> None:
    """A gradient of shape [100, 0] and strides [1, 0] was stored once a row, over other memory."""

    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        s = x.sum([1], keepdim=True, dtype=torch.float32)
        return s + y, s.logsumexp([-1])

    x = torch.randn(100, 3).to(torch.bfloat16)[:, 1:1].requires_grad_(True)
    y = torch.randn(100, 1, dtype=torch.bfloat16).expand(100, 0).requires_grad_(True)
    with backend.recording() as record:
        found = compiled(f, x, y)
        gradient = torch.autograd.grad(found[0].sum() + found[1].sum(), x)[0]
    assert gradient.shape == (100, 0)
    for graph in record.graphs:
        for kernel in graph.kernels:
            for stage in kernel.nest.stages:
                for instr in stage.body:
                    if isinstance(instr, Store) and 0 in kernel.nest.buffer(instr.buffer).shape:
                        assert stage.kind == "loop" or not kernel.nest.reduced


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", [(3, 4), (64, 1000), (1000, 64)])
def test_the_variance_of_equal_numbers_is_zero(shape: tuple[int, int], dim: int) -> None:
    given = torch.full(shape, 0.3)
    assert torch.equal(given.var(dim), torch.zeros(shape[1 - dim]))
    found = torch.compile(lambda x: x.var(dim), backend="deepep", options={"strict": True})(given)
    assert torch.equal(found, torch.zeros(shape[1 - dim]))


def test_a_constant_of_the_model_is_there_while_torch_traces() -> None:
    table = [torch.tensor(3.0), torch.arange(4.0)]

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * table[0] + torch.tensor([1.0, 2.0, 3.0, 4.0])

    with backend.recording() as record:
        x = torch.randn(4, requires_grad=True)
        torch.testing.assert_close(torch.compile(function, backend="deepep")(x), function(x))
    assert not [fields for event, fields in record.events if event == "fallback"]
