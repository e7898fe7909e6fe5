"""Bytes and operations of kernels, counted by hand."""

from __future__ import annotations

import pytest

from deepcompile.ir.nest_text import parse_kernel
from deepcompile.ir.ops import OPS, STORAGE_DTYPES
from deepcompile.ir.traffic import BYTES, Traffic, traffic


def count(text: str, **sizes: int) -> Traffic:
    return traffic(parse_kernel(text), sizes)


RMS_NORM = """
kernel @rms_norm(in x: bf16[s0, 8], in w: f32[8], out y: bf16[s0, 8], out total: f32[]) {
  sizes s0
  axes p0: parallel s0, r0: reduced 8
  loop:
    v0: f32 = load x[8*p0 + r0]
    v1: f32 = mul v0 v0
    v2: f32 = reduce sum v1
  row:
    v3: f32 = rsqrt v2
    v4: f32 = accumulate sum v3
  loop:
    v5: f32 = load x[8*p0 + r0]
    v6: f32 = mul v5 v3
    v7: f32 = load w[r0]
    v8: f32 = mul v6 v7
    store y[8*p0 + r0] v8
  total:
    store total[0] v4
}
"""


@pytest.mark.parametrize("rows", [1, 5])
def test_a_row_program_moves_each_buffer_once(rows):
    cost = count(RMS_NORM, s0=rows)
    assert cost.bytes_read == rows * 8 * 2 + 8 * 4
    assert cost.bytes_written == rows * 8 * 2 + 4
    assert cost.bytes_moved == cost.bytes_read + cost.bytes_written
    muls_and_sum, row = 4, OPS["rsqrt"].cost + 1
    assert cost.operations == rows * (8 * muls_and_sum + row)


def test_an_empty_axis_moves_only_what_comes_after_it():
    assert count(RMS_NORM, s0=0) == Traffic(bytes_read=0, bytes_written=4, operations=0)


@pytest.mark.parametrize(
    ("index", "elements"),
    [
        ("p0", 6),
        ("2*p0 + 3", 6),  # what lies between strided elements is not counted
        ("7", 1),
        ("floordiv(p0, 3)", 6),  # an upper bound: divisions are not followed
        ("v0", 6),
        ("v0 + p1", 30),
    ],
)
def test_a_load_reaches_what_its_index_varies_over(index, elements):
    text = f"""
    kernel @gather(in i: i64[6], in x: f32[100], out y: f32[6, 5]) {{
      axes p0: parallel 6, p1: parallel 5
      row:
        v0: i64 = load i[p0]
        v1: f32 = load x[{index}]
        store y[5*p0 + p1] v1
    }}
    """
    assert count(text).bytes_read == 6 * 8 + elements * 4


def test_different_regions_add_up_to_the_buffer_at_most():
    text = """
    kernel @roll(in x: f32[8], out y: f32[4]) {
      axes p0: parallel 4
      row:
        v0: f32 = load x[p0]
        v1: f32 = load x[p0 + 4]
        v2: f32 = load x[p0 + 2]
        v3: f32 = add v0 v1
        v4: f32 = add v3 v2
        store y[p0] v4
    }
    """
    assert count(text).bytes_read == 8 * 4


def test_a_reduced_value_no_longer_varies_with_the_row():
    text = """
    kernel @pick(in x: f32[3, 8], in t: f32[100], out y: f32[3, 8]) {
      axes p0: parallel 3, r0: reduced 8
      loop:
        v0: f32 = load x[8*p0 + r0]
        v1: i64 = reduce argmax.index v0
      loop:
        v2: f32 = load t[v1]
        store y[8*p0 + r0] v2
    }
    """
    assert count(text).bytes_read == (24 + 3) * 4


def test_every_storage_dtype_has_a_size():
    assert set(BYTES) == set(STORAGE_DTYPES)
