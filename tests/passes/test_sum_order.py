"""Under `deterministic`, the order of a sum is its own: what shares a kernel, and how it loops."""

from __future__ import annotations

import pytest

from deepcompile.options import Options
from deepcompile.passes.fuse_rows import FuseRows
from tests.passes.test_fuse_rows import graph_of, kernels

TOTAL = """
  %x : f32[64, 48] = placeholder
  %y : f32[64, 48] = aten.mul.Tensor(%x, %x)
  %s : f32[] = aten.sum.default(%y)
  %h : f32[] = aten.mul.Tensor(%s, 0.5)
  return (%h,)
"""
LARGEST = TOTAL.replace("aten.sum.default", "aten.max.default")
NORM = """
  %x : f32[64, 48] = placeholder
  %y : f32[64, 48] = aten.exp.default(%x)
  %s : f32[64, 1] = aten.sum.dim_IntList(%y, [1], true)
  %z : f32[64, 48] = aten.div.Tensor(%y, %s)
  return (%z,)
"""
TURNED = """
  %x : f32[4, 8, 32] = placeholder
  %w : f32[4, 32, 8] = placeholder
  %t : f32[4, 32, 8] = aten.permute.default(%x, [0, 2, 1])
  %y : f32[4, 32, 8] = aten.add.Tensor(%w, %t)
  %a : f32[4] = aten.sum.dim_IntList(%x, [1, 2])
  %b : f32[4] = aten.sum.dim_IntList(%y, [1, 2])
  return (%a, %b)
"""


def of(body, apply_pass, **options):
    graph = apply_pass(FuseRows(), graph_of(body), options=Options(**options)).after
    return [kernel.nest for kernel in kernels(graph)]


def test_a_sum_of_everything_stands_alone(apply_pass):
    assert len(of(TOTAL, apply_pass)) == 1
    assert len(of(TOTAL, apply_pass, deterministic=True)) == 3


def test_what_does_not_depend_on_order_is_fused(apply_pass):
    assert len(of(LARGEST, apply_pass, deterministic=True)) == 1


@pytest.mark.parametrize("codegen", ["cpp", "triton"])
def test_sums_of_rows_share_kernels_in_cpp(codegen, apply_pass):
    assert len(of(NORM, apply_pass, codegen=codegen)) == 1
    made = of(NORM, apply_pass, codegen=codegen, deterministic=True)
    assert len(made) == {"cpp": 1, "triton": 3}[codegen]


def test_sums_of_different_orders_stay_apart(apply_pass):
    assert len(of(TURNED, apply_pass)) == 1
    made = of(TURNED, apply_pass, deterministic=True)
    # Each sum walks its own tensor as that lies in memory: what is added, in the order of `%w`.
    rows = [[axis.extent.constant() for axis in nest.reduced] for nest in made]
    assert sorted(rows) == [[32, 8], [256]]
