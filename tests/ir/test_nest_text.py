"""Kernels as text: the round trip and the errors."""

from __future__ import annotations

import inspect
import math
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcompile.errors import IRSyntaxError
from deepcompile.ir import nest_text
from deepcompile.ir.index import Divided, Index
from deepcompile.ir.nest import (
    Accumulate,
    Apply,
    Axis,
    Buffer,
    Cast,
    Const,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Rand,
    Reduce,
    Stage,
    Store,
)
from deepcompile.ir.nest_text import WIDTH, parse_kernel, print_kernel

EXAMPLE = textwrap.dedent(inspect.getdoc(nest_text).split("\n\n")[2])

names = st.sampled_from(("x", "y", "out_1", "_t"))
values = st.integers(0, 99)
dtypes = st.sampled_from(("f32", "f64", "i32", "i64", "b1"))
atoms = st.sampled_from(("p0", "r0", "s3", "v7")).map(Index.of)
indices = st.recursive(
    st.one_of(st.integers(-5, 5).map(Index.of), atoms),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(
            lambda op, a, b: Index((((Divided(op, a, b),), 1),)),
            st.sampled_from(("floordiv", "mod")),
            inner,
            inner,
        ),
    ),
    max_leaves=5,
)
literals = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False))
instructions = st.one_of(
    st.builds(Const, values, dtypes, literals),
    st.builds(IndexValue, values, dtypes, indices),
    st.builds(InRange, values, dtypes, indices, indices, indices),
    st.builds(Load, values, dtypes, names, indices, st.none() | values),
    st.builds(
        Apply, values, dtypes, st.sampled_from(("add", "where")), st.lists(values).map(tuple)
    ),
    st.builds(Cast, values, dtypes, values, st.sampled_from(("bf16", "i8"))),
    st.builds(Rand, values, dtypes, st.sampled_from(("uniform", "normal")), values, indices),
    st.builds(Reduce, values, dtypes, st.just("welford"), st.sampled_from(("", "mean")), values),
    st.builds(Accumulate, values, dtypes, st.just("sum"), values),
    st.builds(Store, names, indices, values),
)
kernels = st.builds(
    Kernel,
    st.just("k"),
    st.lists(
        st.builds(Axis, names, indices, st.sampled_from(("parallel", "reduced"))), max_size=3
    ).map(tuple),
    st.lists(
        st.builds(
            Buffer,
            names,
            st.sampled_from(("f32", "bf16")),
            st.lists(indices, max_size=2).map(tuple),
            st.sampled_from(("in", "out", "inout")),
        ),
        max_size=4,
    ).map(tuple),
    st.lists(st.sampled_from(("s0", "s1")), max_size=2).map(tuple),
    st.lists(
        st.builds(
            Stage,
            st.sampled_from(("row", "loop", "columns", "total")),
            st.lists(instructions, max_size=4).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)


@given(kernels)
def test_every_kernel_round_trips(kernel):
    text = print_kernel(kernel)
    assert parse_kernel(text) == kernel
    assert print_kernel(parse_kernel(text)) == text


def test_the_documented_example_is_what_is_printed():
    assert print_kernel(parse_kernel(EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (1, "1"),
        (True, "true"),
        (False, "false"),
        (-0.0, "-0.0"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (1e-45, "1e-45"),
    ],
)
def test_a_constant_keeps_its_type_and_sign(value, text):
    kernel = Kernel("k", (), (), (), (Stage("row", (Const(0, "f32", value),)),))
    assert f"= const {text}\n" in print_kernel(kernel)
    (instr,) = parse_kernel(print_kernel(kernel)).instructions()
    assert type(instr.value) is type(value)
    assert repr(instr.value) == repr(value)


def test_a_long_header_has_one_buffer_a_line():
    buffers = tuple(Buffer(f"input_{i}", "f32", (Index.of(1024),), "in") for i in range(6))
    kernel = Kernel("long", (), buffers, (), ())
    lines = print_kernel(kernel).splitlines()
    assert lines[0] == "kernel @long("
    assert lines[1] == "  in input_0: f32[1024],"
    assert lines[-2:] == [") {", "}"]
    assert max(map(len, lines)) <= WIDTH
    assert parse_kernel("\n".join(lines)) == kernel


def test_comments_and_blank_lines_are_skipped():
    lines = [f"{line}  # note" for line in EXAMPLE.splitlines()]
    assert parse_kernel("# first\n\n" + "\n\n".join(lines) + "\n\n") == parse_kernel(EXAMPLE)


@pytest.mark.parametrize(
    ("old", "new", "line", "detail"),
    [
        ("kernel @name", "kernel name", 1, "expected `kernel @name"),
        ("in x: f32[", "on x: f32[", 1, "expected a buffer"),
        ("f32[s0, 1024], out", "f32[s0, 1024 +], out", 1, "not an index expression"),
        ("sizes s0", "sizes s0, 3", 2, "expected names"),
        ("p0: parallel", "p0: serial", 3, "expected an axis"),
        ("  row:", "  rows:", 4, "expected a stage"),
        ("v1: f32 = const 0.5", "v1: f32 = const half", 6, "not a constant"),
        ("v2: i64 = index 1024*p0 + r0", "v2: i64 = index 1024 p0", 8, "not an index expression"),
        ("0 <= r0 - 2 < 1020", "0 <= r0 - 2", 9, "`in_range` has the wrong form"),
        ("if v3", "if 3", 10, "`load` has the wrong form"),
        ("mul v4 v1", "mul v4, v1", 11, "`mul` has the wrong form"),
        ("cast v5 to bf16", "cast v5", 12, "`cast` has the wrong form"),
        ("v0 at 1024*p0 + r0", "v0", 13, "`rand` has the wrong form"),
        ("reduce welford.mean v6", "reduce v6", 14, "`reduce` has the wrong form"),
        ("accumulate sum v6", "accumulate sum", 15, "`accumulate` has the wrong form"),
        ("store y[1024*p0 + r0] v6", "store y v6", 16, "expected an instruction"),
        ("\n}", "", 16, "the text ends"),
        ("\n}", "\n}\n}", 18, "expected nothing after"),
    ],
)
def test_an_error_names_the_line(old, new, line, detail):
    assert old in EXAMPLE
    with pytest.raises(IRSyntaxError, match=detail) as caught:
        parse_kernel(EXAMPLE.replace(old, new, 1))
    assert caught.value.line == line


def test_empty_text_is_an_error():
    with pytest.raises(IRSyntaxError, match=r"line 1: .*the text ends"):
        parse_kernel("")
