"""One broken kernel for every rule of the verifier, made from a good one by one edit."""

from __future__ import annotations

import pytest

from deepcompile.errors import DeepCompileError
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.ir.verify import KernelError, verify_kernel

GOOD = """
kernel @good(in x: bf16[s0, 8], in i: i64[s0], inout w: f32[8], out y: bf16[s0, 8], out t: f32[]) {
  sizes s0
  axes p0: parallel s0, r0: reduced 8
  row:
    v0: i64 = load i[p0]
    v1: b1 = in_range 0 <= v0 < 8
    v2: f32 = load x[8*p0 + v0] if v1
  loop:
    v3: f32 = load x[8*p0 + r0]
    v4: f32 = mul v3 v2
    v5: f32 = reduce sum v4
    v6: f32 = accumulate sum v4
    v7: i64 = index r0
    v8: f32 = rand uniform v0 at 8*p0 + r0
  row:
    v9: f32 = const 1.5
    v10: f32 = add v5 v9
    v11: f32 = accumulate max v10
  loop:
    v12: f32 = add v4 v10
    v13: f32 = cast v12 to bf16
    store y[8*p0 + r0] v13
  columns:
    v14: f32 = load w[r0]
    v15: f32 = add v6 v14
    store w[r0] v15
  total:
    v16: f32 = const 2.0
    v17: f32 = mul v11 v16
    store t[0] v17
}
"""

BROKEN = {
    "buffer declared twice": ("out t: f32[]", "out t: f32[], in x: f32[]", "buffer x is declared"),
    "name declared twice": ("r0: reduced 8", "p0: reduced 8", "name p0 is declared twice"),
    "axis named as a value": ("r0: reduced 8", "v0: reduced 8", "v0 names a value"),
    "extent of an unknown size": ("r0: reduced 8", "r0: reduced s1", "extent of r0 uses s1"),
    "shape of an unknown size": ("i: i64[s0]", "i: i64[s1]", "shape of i uses s1"),
    "unknown storage dtype": ("i: i64[s0]", "i: i65[s0]", "unknown dtype 'i65'"),
    "columns before a loop": (
        "  row:\n    v9",
        "  columns:\n    v9",
        "stages are row, loop, columns",
    ),
    "two columns stages": (
        "  total:\n",
        "  columns:\n    v90: i64 = index r0\n  total:\n",
        "more than one columns stage",
    ),
    "two total stages": (
        "    store t[0] v17\n",
        "    store t[0] v17\n  total:\n    v90: f32 = const 1.0\n",
        "more than one total stage",
    ),
    "defined twice": ("v9: f32 = const", "v3: f32 = const", "v3 is defined twice"),
    "used before it is defined": ("mul v3 v2", "mul v3 v12", "v12 is not defined before its use"),
    "never defined": ("mul v3 v2", "mul v3 v99", "v99 is not defined before its use"),
    "mask not defined": ("if v1", "if v99", "v99 is not defined before its use"),
    "gather index not defined": ("8*p0 + v0", "8*p0 + v99", "v99 is not defined"),
    "loop value in a row": ("add v5 v9", "add v4 v9", "v4 of a loop stage is not visible in row"),
    "loop value in columns": (
        "add v6 v14",
        "add v4 v14",
        "v4 of a loop stage is not visible in col",
    ),
    "row value in columns": ("add v6 v14", "add v9 v14", "v9 of a row stage is not visible in col"),
    "row value in total": (
        "mul v11 v16",
        "mul v9 v16",
        "v9 of a row stage is not visible in total",
    ),
    "columns value in total": (
        "mul v11 v16",
        "mul v15 v16",
        "v15 of a columns stage is not visible",
    ),
    "reduce within its loop": (
        "    v6: f32",
        "    v90: f32 = mul v4 v5\n    v6: f32",
        "v5 is reduced by this loop",
    ),
    "reduce in columns": ("add v6 v14", "add v5 v14", "v5 belongs to a point"),
    "accumulate at a point": (
        "add v4 v10",
        "add v4 v6",
        "v6 accumulates .* visible in columns only",
    ),
    "column accumulate in total": ("mul v11 v16", "mul v6 v16", "v6 .* visible in columns only"),
    "total accumulate at a point": ("add v4 v10", "add v4 v11", "v11 .* columns and total only"),
    "unknown op": ("mul v3 v2", "mull v3 v2", "unknown op 'mull'; did you mean 'mul'"),
    "too few arguments": ("mul v3 v2", "mul v3", "mul takes 2 arguments, not 1"),
    "mixed dtypes": ("mul v3 v2", "mul v3 v0", "operand v0 is i64, expected f32"),
    "wrong result": ("v4: f32 = mul", "v4: f64 = mul", "the result is f32, not f64"),
    "cast to a wrong register": (
        "v13: f32 = cast",
        "v13: i32 = cast",
        "the result is f32, not i32",
    ),
    "cast to an unknown dtype": ("cast v12 to bf16", "cast v12 to bf17", "unknown dtype 'bf17'"),
    "load into a wrong register": (
        "v3: f32 = load",
        "v3: f64 = load",
        "the result is f32, not f64",
    ),
    "index value that is no i64": (
        "v7: i64 = index",
        "v7: i32 = index",
        "the result is i64, not i32",
    ),
    "range test that is no b1": ("v1: b1 =", "v1: i32 =", "the result is b1, not i32"),
    "mask that is no b1": ("if v1", "if v0", "mask v0 is i64, expected b1"),
    "gather by a float": (
        "v3: f32 = load x[8*p0 + r0]",
        "v3: f32 = load x[v2]",
        "index uses v2: f32",
    ),
    "integer constant as b1": ("v9: f32 = const 1.5", "v9: b1 = const 1", "1 is no b1"),
    "float constant as an integer": ("v9: f32 = const 1.5", "v9: i64 = const 1.5", "1.5 is no i64"),
    "integer constant too large": (
        "const 1.5",
        "const 1\n    v90: i32 = const 2147483648",
        "is no i32",
    ),
    "constant of a storage dtype": (
        "v9: f32 = const",
        "v9: bf16 = const",
        "unknown register dtype",
    ),
    "seed that is no i64": ("rand uniform v0", "rand uniform v3", "seed v3 is f32, expected i64"),
    "unknown kind of random": ("rand uniform", "rand normall", "did you mean 'normal'"),
    "unknown monoid": ("reduce sum", "reduce summ", "did you mean 'sum'"),
    "part of a plain monoid": ("reduce sum", "reduce sum.mean", "sum has no part 'mean'"),
    "missing part": ("reduce sum", "reduce welford", "welford has no part ''"),
    "accumulate with parts": ("accumulate sum", "accumulate welford", "cannot accumulate welford"),
    "wrong reduction result": (
        "v5: f32 = reduce",
        "v5: f64 = reduce",
        "the result is f32, not f64",
    ),
    "reduce in a row": (
        "    v9: f32",
        "    v90: f32 = reduce sum v2\n    v9: f32",
        "reduce in a row stage",
    ),
    "accumulate in columns": (
        "    v15: f32",
        "    v90: f32 = accumulate sum v14\n    v15: f32",
        "accumulate in a columns stage",
    ),
    "unknown buffer to load": ("load i[", "load j[", "unknown buffer 'j'"),
    "unknown buffer to store": ("store t[", "store tt[", "unknown buffer 'tt'; did you mean 't'"),
    "load from an out buffer": (
        "load x[8*p0 + r0]",
        "load y[8*p0 + r0]",
        "load from the out buffer y",
    ),
    "store to an in buffer": ("store y[", "store x[", "store to the in buffer x"),
    "out buffer not stored": ("    store t[0] v17\n", "", "out buffer t is never stored"),
    "store of a wrong dtype": ("store t[0] v17", "store i[0] v17", "stored value v17 is f32"),
    "unknown name in an index": ("index r0", "index r1", "index uses r1, which is no axis"),
    "reduced axis in a row": ("load i[p0]", "load i[r0]", "axis r0 does not run in a row stage"),
    "parallel axis in columns": ("load w[r0]", "load w[p0]", "axis p0 does not run in a columns"),
    "axis in total": ("store t[0]", "store t[r0]", "axis r0 does not run in a total stage"),
    "axis in a range test": (
        "in_range 0 <= v0",
        "in_range r0 <= v0",
        "axis r0 does not run in a row",
    ),
    "axis in an offset": ("at 8*p0 + r0", "at 8*p0 + r1", "index uses r1"),
    "inout stored elsewhere": ("store w[r0]", "store w[-r0 + 7]", "inout buffer w is loaded at"),
    "inout loaded elsewhere": (
        "    v15: f32",
        "    v90: f32 = load w[-r0 + 7]\n    v15: f32",
        "inout buffer w is loaded at two indices",
    ),
    "inout loaded after its store": (
        "    store w[r0] v15\n",
        "    store w[r0] v15\n    v90: f32 = load w[r0]\n",
        "load from the inout buffer w after its store",
    ),
    "positions that store to one element": (
        "store y[8*p0 + r0]",
        "store y[8*p0]",
        "every position of r0 stores to the same element",
    ),
}


def test_the_good_kernel_passes():
    verify_kernel(parse_kernel(GOOD))


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(rule):
    old, new, message = BROKEN[rule]
    assert GOOD.count(old) >= 1
    with pytest.raises(KernelError, match=message):
        verify_kernel(parse_kernel(GOOD.replace(old, new, 1)))


def test_the_message_shows_the_instruction_between_its_neighbours():
    with pytest.raises(DeepCompileError) as caught:
        verify_kernel(parse_kernel(GOOD.replace("mul v3 v2", "mul v3 v12")))
    assert str(caught.value).splitlines() == [
        "kernel @good: v12 is not defined before its use",
        "  loop: (stage 1)",
        "      v3: f32 = load x[8*p0 + r0]",
        "  --> v4: f32 = mul v3 v12",
        "      v5: f32 = reduce sum v4",
        "      v6: f32 = accumulate sum v4",
        "      v7: i64 = index r0",
        "      ...",
    ]


def test_an_axis_of_extent_one_need_not_be_in_a_store():
    text = """
    kernel @unit(in x: f32[1, 4], out y: f32[4]) {
      axes p0: parallel 1, p1: parallel 4
      row:
        v0: f32 = load x[p1]
        store y[p1] v0
    }
    """
    verify_kernel(parse_kernel(text))


def test_a_scatter_may_store_at_loaded_positions():
    text = """
    kernel @scatter(in i: i64[4], in x: f32[4], out y: f32[9]) {
      axes p0: parallel 4
      row:
        v0: i64 = load i[p0]
        v1: f32 = load x[p0]
        store y[v0] v1
    }
    """
    verify_kernel(parse_kernel(text))


def test_an_out_buffer_may_be_stored_in_parts():
    text = """
    kernel @cat(in x: f32[4], out y: f32[8]) {
      axes p0: parallel 4
      row:
        v0: f32 = load x[p0]
        store y[p0] v0
        store y[p0 + 4] v0
    }
    """
    verify_kernel(parse_kernel(text))


def test_a_total_may_be_computed_before_the_columns_that_use_it():
    text = """
    kernel @share(in x: f32[s0, 8], out y: f32[8]) {
      sizes s0
      axes p0: parallel s0, r0: reduced 8
      loop:
        v0: f32 = load x[8*p0 + r0]
        v1: f32 = accumulate sum v0
        v2: f32 = reduce sum v0
      row:
        v3: f32 = accumulate sum v2
      total:
        v4: f32 = const 1.0
        v5: f32 = div v4 v3
      columns:
        v6: f32 = mul v1 v5
        store y[r0] v6
    }
    """
    verify_kernel(parse_kernel(text))
    late = text.replace("mul v1 v5", "mul v1 v3").replace("total:", "columns:", 1)
    with pytest.raises(KernelError, match="more than one columns stage"):
        verify_kernel(parse_kernel(late))
