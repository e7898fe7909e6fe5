"""Kernels over tables of rows against the interpreter: all lengths, any number of threads."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from deepcompile.codegen.cpp_program import prelude
from deepcompile.codegen.cpp_table import emit_table_kernel, table_of, table_support
from deepcompile.codegen.steps import TableStep
from deepcompile.ir.interpret import interpret
from deepcompile.ir.kernel_op import KernelOp, Origin
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.options import Options
from deepcompile.runtime.build import build
from deepcompile.runtime.threads import openmp_entry_points

UPDATE = """
kernel @k(inout p: f32[s0], in g: bf16[s0], in rate: f64[], out m: f32[s0]) {
  sizes s0
  axes p0: parallel s0
  row:
    v0: f32 = load p[p0]
    v1: f32 = load g[p0]
    v2: f64 = load rate[0]
    v3: f32 = cast v2 to f32
    v4: f32 = mul v1 v3
    v5: f32 = sub v0 v4
    store p[p0] v5
    store m[p0] v4
}
"""
COUNT = """
kernel @k(inout n: f32[], out m: f32[]) {
  row:
    v0: f32 = load n[0]
    v1: f32 = const 1.0
    v2: f32 = add v0 v1
    v3: f32 = sqrt v2
    store n[0] v2
    store m[0] v3
}
"""
LENGTHS = (5, 0, 1, 16, 17, 70_001, 15, 0, 1000, 33)


def run_table(
    kernel: Kernel, rows: list[dict[str, Tensor]], extents: tuple[int, ...], threads: int
) -> None:
    """Build the kernel and run it once over all rows, in place."""
    names = [buffer.name for buffer in kernel.buffers]
    tensors = [row[name] for row in rows for name in names]
    numbers = iter(range(len(tensors)))
    slots = tuple(tuple(next(numbers) for _ in names) for _ in rows)
    offsets = tuple((0,) * len(names) for _ in rows)
    op = KernelOp(kernel, (), Origin((), ()), lambda *_: ())
    table = table_of(TableStep(op, 0, slots, offsets, extents))
    source = "\n".join([prelude(), table_support(), emit_table_kernel(kernel, "k0").body])
    handle = build(source, Options(cache=False), lambda *_, **__: None).handle
    entries = openmp_entry_points()
    assert entries is not None
    handle.deepcompile_threads.argtypes = [ctypes.c_void_p] * 3
    handle.deepcompile_threads(*entries)
    pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    for _ in range(3):
        handle.k0(pointers, (ctypes.c_int64 * len(table))(*table), ctypes.c_int64(threads))


def expected_rows(
    kernel: Kernel, rows: list[dict[str, Tensor]], extents: tuple[int, ...]
) -> list[dict[str, Tensor]]:
    results = [{name: tensor.clone() for name, tensor in row.items()} for row in rows]
    for row, extent in zip(results, extents, strict=True):
        for _ in range(3):
            interpret(kernel, row, dict.fromkeys(kernel.sizes, extent))
    return results


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_of_all_lengths(threads: int) -> None:
    torch.manual_seed(0)
    kernel = parse_kernel(UPDATE)
    rate = torch.tensor(0.1, dtype=torch.float64)
    rows = [
        {
            "p": torch.randn(n),
            "g": torch.randn(n).bfloat16(),
            "rate": rate,
            "m": torch.full((n,), float("nan")),
        }
        for n in LENGTHS
    ]
    expected = expected_rows(kernel, rows, LENGTHS)
    run_table(kernel, rows, LENGTHS, threads)
    for found, wanted in zip(rows, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_single_values(threads: int) -> None:
    kernel = parse_kernel(COUNT)
    rows = [{"n": torch.tensor(float(i)), "m": torch.tensor(0.0)} for i in range(40)]
    expected = expected_rows(kernel, rows, (1,) * 40)
    run_table(kernel, rows, (1,) * 40, threads)
    for found, wanted in zip(rows, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_table_of_nothing() -> None:
    kernel = parse_kernel(UPDATE)
    empty = torch.empty(0)
    rows = [{"p": empty, "g": empty.bfloat16(), "rate": torch.tensor(1.0).double(), "m": empty}]
    run_table(kernel, rows, (0,), 4)
