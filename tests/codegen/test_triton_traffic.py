"""Kernels of rows move each input and output once; where a row is long, inputs twice at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepcompile.backend import recording
from deepcompile.codegen.triton_kernel import TritonKernel, emit_triton
from deepcompile.codegen.triton_schedule import plan_triton
from deepcompile.codegen.triton_softmax import with_one_walk
from deepcompile.codegen.triton_traffic import Moved, moved
from deepcompile.ir.interpret import interpret
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.ir.traffic import BYTES, traffic

pytest.importorskip("triton")
F = torch.nn.functional
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from deepcompile.runtime.triton_interpreter import install  # noqa: E402
from deepcompile.runtime.triton_modules import load_source  # noqa: E402
from tests.codegen.triton_launch import launch  # noqa: E402

SHORT, LONG = 384, 65536
MANY, FEW = 300, 4


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b)


def rms_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w)


def softmax(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def cross_entropy(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.cross_entropy(x, torch.arange(len(x)))


FUNCTIONS = [layer_norm, rms_norm, softmax, cross_entropy]


def kernels_of(function: Callable[..., Tensor], rows: int, columns: int) -> list[TritonKernel]:
    """Forward and backward, a kernel each, under the schedule by rule."""
    torch._dynamo.reset()
    shapes = ((rows, columns), (columns,), (columns,))
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    with recording() as record:
        made = torch.compile(function, backend="deepep")(*given)
        made.backward(torch.randn_like(made))
    nests = [op.nest for graph in record.graphs for op in graph.kernels]
    assert len(nests) == 2 or rows == FEW  # few rows are shared by making more kernels, too
    return [emit_triton(nest, plan_triton(nest), "kernel") for nest in nests]


def whole(nest: Kernel) -> dict[str, int]:
    """Bytes of each buffer."""
    return {
        buffer.name: math.prod(int(size.evaluate({})) for size in buffer.shape)
        * BYTES[buffer.dtype]
        for buffer in nest.buffers
    }


def once(nest: Kernel) -> int:
    """Bytes of each input once and each output once."""
    return sum(whole(nest).values())


def agrees_with_text(kernel: TritonKernel, found: Moved) -> bool:
    """Whether each buffer is loaded as often, in the text of all functions, as was counted."""
    text = "\n".join(function.text for function in kernel.functions)
    sizes = whole(kernel.kernel)
    return all(
        text.count(f"tl.load({name} + ") == round(count / sizes[name])
        for name, count in found.read.items()
        if count % sizes[name] == 0
    )


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_row_in_one_tile_moves_each_buffer_once(function: Callable[..., Tensor]) -> None:
    for kernel in kernels_of(function, MANY, SHORT):
        assert kernel.kernel.reduced
        assert kernel.schedule.persistent
        found = moved(kernel, {})
        assert found.total == traffic(kernel.kernel, {}).bytes_moved
        assert found.total <= 1.05 * once(kernel.kernel)
        assert found.total >= 0.95 * once(kernel.kernel)
        assert bool(found.partials) == bool(kernel.workspaces)
        assert function is cross_entropy or agrees_with_text(kernel, found)


@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_long_row_is_read_twice_at_most(function: Callable[..., Tensor], rows: int) -> None:
    kernels = kernels_of(function, rows, LONG)
    assert any(kernel.schedule.splits > 1 for kernel in kernels) == (rows == FEW)
    for kernel in kernels:
        found = moved(kernel, {})
        sizes = whole(kernel.kernel)
        slack = 1 + 5 / FEW / LONG  # single elements of a row, looked up by index
        for name, count in found.read.items():
            assert count <= 2 * slack * sizes[name] + 16 * rows, (name, kernel.kernel)
        for name, count in found.written.items():
            assert count == sizes[name]
        assert function is cross_entropy or agrees_with_text(kernel, found)


def test_a_loss_over_long_rows_reads_them_once() -> None:
    forward, _ = kernels_of(cross_entropy, MANY, LONG)
    assert moved(forward, {}).total <= 1.05 * once(forward.kernel)


SOFTMAX = """
kernel @softmax(in b0: f32[5, 21], out b1: f32[5, 21]) {
  axes p0: parallel 5, r0: reduced 21
  loop:
    v0: f32 = load b0[21*p0 + r0]
    v1: f32 = reduce max v0
  loop:
    v2: f32 = sub v0 v1
    v3: f32 = exp v2
    v4: f32 = reduce sum v3
  loop:
    v5: f32 = div v3 v4
    store b1[21*p0 + r0] v5
}
"""


@pytest.mark.parametrize("splits", [1, 3])
def test_softmax_in_one_walk_less_is_the_same(splits: int, tmp_path: Path) -> None:
    if DEVICE == "cpu":
        install()
    nest = parse_kernel(SOFTMAX)
    assert [stage.kind for stage in with_one_walk(nest).stages].count("loop") == 2
    x = torch.randn(5, 21)
    x[1, 3] = math.inf
    x[2] = -math.inf
    x[3, 7] = math.nan
    x[4, :5] = -math.inf
    tensors = {"b0": x.flatten(), "b1": torch.empty(5 * 21)}
    interpret(nest, tensors, {})
    torch.testing.assert_close(tensors["b1"].view(5, 21), x.softmax(-1), equal_nan=True)
    schedule = replace(
        plan_triton(nest), x_block=1, r_block=8, persistent=False, splits=splits, programs=0
    )
    kernel = emit_triton(nest, schedule, "kernel")
    got = {name: tensor.to(DEVICE, copy=True) for name, tensor in tensors.items()}
    got["b1"].zero_()
    launch(kernel, load_source(kernel.source, tmp_path), got, {})
    torch.testing.assert_close(got["b1"].cpu(), tensors["b1"], equal_nan=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sub v0 v1", "sub v1 v0"),  # exponentials of something else
        ("reduce max v0", "reduce min v0"),
        ("exp v2", "exp2 v2"),
        ("reduce sum v3", "reduce max v3"),
    ],
)
def test_other_sums_keep_their_walk(old: str, new: str) -> None:
    nest = parse_kernel(SOFTMAX.replace(old, new))
    assert with_one_walk(nest) is nest
