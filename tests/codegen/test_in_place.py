"""Kernels that write over an operand: where they may, where they must not, and the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from deepcompile import backend
from deepcompile.backend import recording
from deepcompile.codegen import lifetimes
from deepcompile.codegen.in_place import written_over
from deepcompile.ir.index import contiguous_strides
from deepcompile.ir.kernel_op import KernelOp, Origin, OutputSpec
from deepcompile.ir.nest_text import parse_kernel, print_kernel
from deepcompile.recording import Recording

POINTWISE = """
kernel @k(in a: f32[64, 32], in b: f32[32], out y: f32[64, 32], out z: f32[64, 32]) {
  axes p0: parallel 64, p1: parallel 32
  row:
    v0: f32 = load a[32*p0 + p1]
    v1: f32 = load b[p1]
    v2: f32 = mul v0 v1
    v3: f32 = add v0 v1
    store y[32*p0 + p1] v2
    store z[32*p0 + p1] v3
}
"""
SOFTMAX = """
kernel @k(in x: f32[64, 32], out y: f32[64, 32]) {
  axes p0: parallel 64, r0: reduced 32
  loop:
    v0: f32 = load x[32*p0 + r0]
    v1: f32 = exp v0
    v2: f32 = reduce sum v1
  loop:
    v3: f32 = div v1 v2
    store y[32*p0 + r0] v3
}
"""
TWO_LOOPS = """
kernel @k(in x: f32[64, 32], out y: f32[64, 32], out s: f32[64]) {
  axes p0: parallel 64, r0: reduced 32
  loop:
    v0: f32 = load x[32*p0 + r0]
    v1: f32 = exp v0
    v2: f32 = reduce sum v1
    store y[32*p0 + r0] v1
  loop:
    v3: f32 = div v1 v2
    v4: f32 = reduce max v3
  row:
    store s[p0] v4
}
"""
REVERSED = """
kernel @k(in x: f32[64], out y: f32[64]) {
  axes p0: parallel 64
  row:
    v0: f32 = load x[63 - p0]
    v1: f32 = exp v0
    store y[p0] v1
}
"""


def op_of(text: str, eager: Callable[..., tuple[Tensor, ...]]) -> KernelOp:
    nest = parse_kernel(text)
    outputs = tuple(
        OutputSpec(b.shape, contiguous_strides(b.shape), b.dtype)
        for b in nest.buffers
        if b.role == "out"
    )
    return KernelOp(nest, outputs, Origin((), ()), eager)


def merge(op: KernelOp, out: str, operand: str) -> KernelOp | None:
    return written_over(op, op.nest.buffer(out), op.nest.buffer(operand))


def test_a_result_takes_the_memory_of_an_operand() -> None:
    op = op_of(POINTWISE, lambda a, b: (a * b, a + b))
    merged = merge(op, "y", "a")
    assert merged is not None
    roles = [(buffer.name, buffer.role) for buffer in merged.nest.buffers]
    assert roles == [("a", "inout"), ("b", "in"), ("z", "out")]
    assert len(merged.outputs) == 1
    assert "store a[" in print_kernel(merged.nest)
    a, b = torch.randn(64, 32), torch.randn(32)
    for call in (merged, merged.eager):
        given = a.clone()
        (z,) = call(given, b)
        torch.testing.assert_close(given, a * b)
        torch.testing.assert_close(z, a + b)


def test_aten_writes_a_result_where_its_readers_look() -> None:
    """What ATen gives may lie in memory otherwise than the kernel's result."""
    op = op_of(SOFTMAX, lambda x: (torch.softmax(x, -1).t().contiguous().t(),))
    merged = merge(op, "y", "x")
    assert merged is not None
    x = torch.randn(64, 32)
    given = x.clone()
    assert merged.eager(given) == ()
    torch.testing.assert_close(given, torch.softmax(x, -1))


def test_an_operand_goes_to_one_result_only() -> None:
    merged = merge(op_of(POINTWISE, lambda a, b: (a * b, a + b)), "y", "a")
    assert merged is not None
    assert merge(merged, "z", "a") is None


def test_what_is_read_for_every_row_is_not_written_over() -> None:
    assert merge(op_of(POINTWISE, lambda a, b: (a * b, a + b)), "y", "b") is None


def test_a_row_is_written_over_in_the_last_loop() -> None:
    op = op_of(SOFTMAX, lambda x: (torch.softmax(x, -1),))
    merged = merge(op, "y", "x")
    assert merged is not None
    x = torch.randn(64, 32)
    given = x.clone()
    assert merged(given) == ()
    torch.testing.assert_close(given, torch.softmax(x, -1))


@pytest.mark.parametrize("text", [TWO_LOOPS, REVERSED])
def test_what_is_read_later_or_elsewhere_is_not_written_over(text: str) -> None:
    assert merge(op_of(text, lambda x: (x,)), "y", "x") is None


def test_another_dtype_is_not_written_over() -> None:
    text = SOFTMAX.replace("in x: f32", "in x: bf16")
    assert merge(op_of(text, lambda x: (x,)), "y", "x") is None


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In-place kernels for tensors of test size too."""
    monkeypatch.setattr(backend._Compiler, "follow_lifetimes", True)
    monkeypatch.setattr(lifetimes, "LARGE", 1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def roles(record: Recording) -> list[str]:
    buffers = (b for graph in record.graphs for op in graph.spec.kernels for b in op.nest.buffers)
    return [buffer.role for buffer in buffers]


def compiled(function: Callable[..., object], *args: Tensor) -> tuple[object, list[str]]:
    with recording() as record:
        call = torch.compile(function, backend="deepep", fullgraph=True, options={"strict": True})
        return call(*args), roles(record)


def test_products_are_written_over(everywhere: None) -> None:
    x, w = torch.randn(16, 8), torch.randn(8, 8)
    found, made = compiled(lambda x, w: torch.relu(x @ w + 1) @ w, x, w)
    torch.testing.assert_close(found, torch.relu(x @ w + 1) @ w)
    assert made == ["inout"]


def test_inputs_and_what_is_returned_are_not(everywhere: None) -> None:
    x, w = torch.randn(16, 8), torch.randn(8, 8)
    before = x.clone()

    def function(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        product = x @ w
        return torch.relu(x), product.exp(), product.t()

    found, made = compiled(function, x, w)
    torch.testing.assert_close(found, function(x, w))
    assert torch.equal(x, before)
    assert "inout" not in made


def test_a_view_keeps_what_it_looks_at(everywhere: None) -> None:
    x, w = torch.randn(16, 8), torch.randn(8, 8)

    def function(x: Tensor, w: Tensor) -> Tensor:
        product = x @ w
        part = product[4:8]
        return part @ product.exp().t()

    found, _ = compiled(function, x, w)
    torch.testing.assert_close(found, function(x, w))


def test_what_an_operator_of_the_users_has_seen_is_not(everywhere: None) -> None:
    kept: list[Tensor] = []

    @torch.library.custom_op("deepcompile_in_place::keep", mutates_args=())
    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x.sum().reshape(1)

    keep.register_fake(lambda x: x.new_empty(1))
    x, w = torch.randn(16, 8), torch.randn(8, 8)
    found, made = compiled(_use, x, w)
    torch.testing.assert_close(found, torch.exp(x @ w) + (x @ w).sum())
    torch.testing.assert_close(kept[0], x @ w)
    assert "inout" not in made


def _use(x: Tensor, w: Tensor) -> Tensor:
    product = x @ w
    total = torch.ops.deepcompile_in_place.keep(product)
    return torch.exp(product) + total


def test_a_second_backward_finds_what_forward_kept(everywhere: None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.Tanh())
    x = torch.randn(16, 8)
    model(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    loss = torch.compile(model, backend="deepep", options={"strict": True})(x).sum()
    for _ in range(2):
        model.zero_grad()
        loss.backward(retain_graph=True)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("dynamic", [False, True])
def test_layouts_that_differ_are_views_of_one_storage(everywhere: None, dynamic: bool) -> None:
    x, w = torch.randn(4, 6, 8), torch.randn(8, 8)

    def function(x: Tensor, w: Tensor) -> Tensor:
        product = x.view(-1, 8) @ w
        heads = torch.tanh(product.view(x.shape)) * 2
        return heads.transpose(1, 2).matmul(heads)

    call = torch.compile(function, backend="deepep", dynamic=dynamic, options={"strict": True})
    with recording() as record:
        torch.testing.assert_close(call(x, w), function(x, w))
    assert "inout" in roles(record)
    y = torch.randn(2, 10, 8)
    torch.testing.assert_close(call(y, w), function(y, w))
