"""Index arithmetic against plain integers, and its text form."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcompile.ir.index import (
    ONE,
    ZERO,
    Index,
    contiguous_strides,
    exact_divide,
    floordiv,
    in_bounds,
    mod,
    out_of_bounds,
    parse_index,
    product,
)

AXES = ("p0", "p1", "r0")
SIZES = ("s0", "s1")
EXTENTS = {"p0": Index.of(4), "p1": Index.of("s0"), "r0": Index.of("s1") * 2}
P0, P1, R0, S0, S1 = map(Index.of, (*AXES, *SIZES))

leaves = st.one_of(st.integers(-6, 6).map(Index.of), st.sampled_from((P0, P1, R0, S0, S1)))
divisors = st.one_of(st.integers(1, 6).map(Index.of), st.sampled_from((S0, S1, S0 * 2, S0 * S1)))


def _combine(inner: st.SearchStrategy[Index]) -> st.SearchStrategy[Index]:
    return st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, b: floordiv(a, b, EXTENTS), inner, divisors),
        st.builds(lambda a, b: mod(a, b, EXTENTS), inner, divisors),
    )


indices = st.recursive(leaves, _combine, max_leaves=6)


def points(s0: int, s1: int):
    """Every position of the axes for these sizes."""
    for p0, p1, r0 in itertools.product(range(4), range(s0), range(2 * s1)):
        yield {"p0": p0, "p1": p1, "r0": r0, "s0": s0, "s1": s1}


sizes = st.tuples(st.integers(1, 4), st.integers(1, 3))


@given(indices, indices, sizes)
def test_arithmetic_is_integer_arithmetic(a, b, size):
    for point in points(*size):
        left, right = a.evaluate(point), b.evaluate(point)
        assert (a + b).evaluate(point) == left + right
        assert (a - b).evaluate(point) == left - right
        assert (a * b).evaluate(point) == left * right


@given(indices, divisors, sizes)
def test_floordiv_and_mod_agree_with_brute_force(index, divisor, size):
    quotient, rest = floordiv(index, divisor, EXTENTS), mod(index, divisor, EXTENTS)
    for point in points(*size):
        value, by = index.evaluate(point), divisor.evaluate(point)
        assert quotient.evaluate(point) == value // by
        assert rest.evaluate(point) == value % by


@given(indices, indices)
def test_equal_expressions_are_equal_objects(a, b):
    assert a + b == b + a
    assert a * b == b * a
    assert hash(a + b) == hash(b + a)
    assert a - a == ZERO == 0
    assert (a + b) * 2 == a + a + b + b
    assert str((a + b) - b) == str(a)


@given(indices)
def test_text_round_trip(index):
    assert parse_index(str(index)) == index
    assert str(parse_index(str(index))) == str(index)


@given(indices, leaves, leaves, sizes)
def test_substitution_is_evaluation_of_the_replacement(index, first, second, size):
    # The replacements are arbitrary expressions, so no extents hold for the axes they name.
    plain = index.substitute({"p0": first, "s1": Index.of(size[1])}, {})
    moved = plain.substitute({"p1": second}, {})
    for point in points(*size):
        inner = {**point, "p1": second.evaluate(point)}
        expected = {**inner, "p0": first.evaluate(inner)}
        assume_inside = 0 <= expected["p0"] < 4 and 0 <= expected["p1"] < point["s0"]
        if assume_inside:
            assert moved.evaluate(point) == index.evaluate(expected)


@given(indices, st.integers(-3, 3).map(Index.of), divisors, sizes)
def test_bounds_are_only_claimed_when_they_hold(index, low, width, size):
    high = low + width
    inside = in_bounds(index, low, high, EXTENTS)
    outside = out_of_bounds(index, low, high, EXTENTS)
    for point in points(*size):
        holds = low.evaluate(point) <= index.evaluate(point) < high.evaluate(point)
        assert holds or not inside
        assert not (holds and outside)


@given(indices, st.sampled_from((*AXES, *SIZES)))
def test_coefficient_separates_a_linear_name(index, name):
    factor = index.coefficient(name)
    if factor is None:
        assert name in index.names()
        return
    rest = index - factor * Index.of(name)
    assert name not in rest.names() | factor.names()


@given(indices, divisors)
def test_exact_divide_undoes_a_product(index, divisor):
    assert exact_divide(index * divisor, divisor) == index


@given(indices, sizes)
def test_evaluation_takes_tensors(index, size):
    axes = torch.tensor([[p["p0"], p["p1"], p["r0"]] for p in points(*size)])
    named = {name: axes[:, i] for i, name in enumerate(AXES)} | dict(zip(SIZES, size, strict=True))
    expected = [index.evaluate(point) for point in points(*size)]
    assert torch.as_tensor(index.evaluate(named)).expand(len(axes)).tolist() == expected


def test_a_flattened_pair_of_axes_is_taken_apart_again():
    extents = {"p0": S0, "p1": Index.of(8)}
    flat = P0 * 8 + P1
    assert floordiv(flat, Index.of(8), extents) == P0
    assert mod(flat, Index.of(8), extents) == P1
    dynamic = {"p0": Index.of(8), "p1": S0}
    assert floordiv(P0 * S0 + P1, S0, dynamic) == P0
    assert mod(P0 * S0 + P1, S0, dynamic) == P1


def test_what_does_not_simplify_stays_and_prints():
    assert str(floordiv(P0, Index.of(3), EXTENTS)) == "floordiv(p0, 3)"
    assert str(mod(P0 + P1 - 7, Index.of(3), EXTENTS)) == "mod(p0 + p1 + 2, 3)"
    assert str(floordiv(floordiv(P0, Index.of(2), {}), S0, {})) == "floordiv(p0, 2*s0)"
    assert str(-P0 + 1) == "-p0 + 1"
    assert str(ZERO) == "0"


def test_a_loaded_value_has_no_bounds():
    assert not in_bounds(Index.of("v3"), ZERO, Index.of(10**9), {})
    assert not out_of_bounds(Index.of("v3"), ZERO, ONE, {})


def test_an_axis_of_unknown_extent_is_no_size():
    # A size is at least 1, but an axis starts at 0.
    assert not out_of_bounds(P0, ZERO, ONE, {})
    assert out_of_bounds(S0, ZERO, ONE, {})


def test_strides_and_products():
    assert product([S0, Index.of(3), S1]) == S0 * S1 * 3
    assert contiguous_strides((S0, Index.of(3), S1)) == (S1 * 3, S1, ONE)
    assert contiguous_strides(()) == ()


@pytest.mark.parametrize(
    "text", ["", "p0 +", "p0 / 2", "p0 ** 2", "max(p0, 1)", "1.5", "'p0'", "p0.x"]
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="not an index expression"):
        parse_index(text)
