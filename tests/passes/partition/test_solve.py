"""`solve` against all choices of small problems, and on problems like a transformer's."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from deepcompile.errors import PartitionError
from deepcompile.passes.checkpoints.unsolved import NO_SCIPY
from deepcompile.passes.partition.bound import bound_of
from deepcompile.passes.partition.colours import colours_of, no_colours
from deepcompile.passes.partition.descent import Search, descend
from deepcompile.passes.partition.problem import (
    MemoryRow,
    Problem,
    Use,
    Value,
    held_of,
    seconds_of,
)
from deepcompile.passes.partition.relaxation import Prices, program_of, relax
from deepcompile.passes.partition.solve import solve
from deepcompile.passes.partition.transport import transports_of
from tests.passes.partition.transformer_problems import transformer

Options = tuple[int, ...]


def every(problem: Problem) -> list[Options]:
    """All possible choices."""
    choices = itertools.product(*(range(len(costs)) for costs in problem.costs))
    return [options for options in choices if is_possible(problem, options)]


def is_possible(problem: Problem, options: Options) -> bool:
    return (
        all(held_of(row, options) <= row.limit for row in problem.rows)
        and all(len({options[group] for group in groups}) == 1 for groups in problem.alike)
        and math.isfinite(seconds_of(problem, options))
    )


def best(problem: Problem) -> float:
    return min((seconds_of(problem, options) for options in every(problem)), default=math.inf)


@st.composite
def problems(draw: st.DrawFn, repeats: int = 1) -> Problem:
    """Few groups with few options, connected at random; some moves and options do not exist.

    With repeats, so many copies of one problem that are chained by tensors from each to the next.
    """
    count = draw(st.integers(1, 5 if repeats == 1 else 2))
    seconds = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 8.0, math.inf])
    places = draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, 3)) for _ in range(count)]
    first = [np.array([draw(seconds) for _ in range(size)]) for size in sizes]
    group = st.integers(0, count - 1)
    values, uses = [], []

    def tables(size: int, least: int = 0) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, places - 1)) for _ in range(size))

    def add(maker: int, users: list[tuple[int, int]]) -> None:
        moves = np.array([[draw(seconds) for _ in range(places)] for _ in range(places)])
        np.fill_diagonal(moves, 0.0)
        keeps, made = draw(st.booleans()), tables(sizes[maker])
        some = [
            (shift, user, tables(sizes[user], -1), draw(st.booleans())) for shift, user in users
        ]
        for copy in range(repeats):
            values.append(Value(copy * count + maker, made, moves, keeps))
            for shift, user, taken, backward in some:
                if copy + shift < repeats:
                    place = (copy + shift) * count + user
                    uses.append(Use(len(values) - 1, place, taken, backward))

    for _ in range(draw(st.integers(0, 4 if repeats == 1 else 2))):
        add(draw(group), [(0, draw(group)) for _ in range(draw(st.integers(1, 3)))])
    if repeats > 1:
        add(draw(group), [(1, draw(group)) for _ in range(draw(st.integers(1, 2)))])
    costs = [own for _ in range(repeats) for own in first]
    rows = []
    for _ in range(draw(st.integers(0, 2))):
        own = {
            g: np.array([float(draw(st.integers(0, 4))) for _ in range(sizes[g])])
            for g in range(count)
            if draw(st.booleans())
        }
        held = {copy * count + g: b for copy in range(repeats) for g, b in own.items()}
        rows.append(
            MemoryRow(
                float(draw(st.integers(1, 8 * repeats))), held, float(draw(st.integers(0, 1)))
            )
        )
    alike = []
    twins = [p for p in itertools.combinations(range(count), 2) if sizes[p[0]] == sizes[p[1]]]
    if twins and draw(st.integers(0, 3)) == 3:
        one, other = draw(st.sampled_from(twins))
        alike = [(copy * count + one, copy * count + other) for copy in range(repeats)]
    labels = [f"group{at}" for at in range(count * repeats)]
    return Problem(costs, values, uses, rows, labels, alike)


def check(problem: Problem, gap: float) -> None:
    expected = best(problem)
    if expected == math.inf:
        with pytest.raises(PartitionError):
            solve(problem, gap=gap)
        return
    found = solve(problem, gap=gap)
    assert is_possible(problem, found.options)
    assert found.seconds == seconds_of(problem, found.options)
    assert found.held == tuple(held_of(row, found.options) for row in problem.rows)
    assert found.bound <= expected * (1 + 1e-9) + 1e-9
    assert found.seconds <= expected + gap * expected + 1e-9


@seed(0)
@settings(max_examples=250, deadline=None, database=None)
@given(problems())
def test_the_cheapest_of_all(problem: Problem) -> None:
    check(problem, 0.0)


@seed(0)
@settings(max_examples=100, deadline=None, database=None)
@given(problems(repeats=4))
def test_the_cheapest_of_all_where_groups_repeat(problem: Problem) -> None:
    check(problem, 0.0)


@seed(0)
@settings(max_examples=100, deadline=None, database=None)
@given(problems(repeats=4), st.integers(1, 4))
def test_few_rounds_of_colours_still_bound_all_choices(problem: Problem, rounds: int) -> None:
    problem = replace(problem, alike=())
    problem = replace(problem, costs=[np.where(np.isfinite(c), c, 100.0) for c in problem.costs])
    expected = best(problem)
    if expected == math.inf:
        return
    colours = colours_of(problem, rounds)
    transports = transports_of(problem, colours)
    relaxed = relax(transports, program_of(problem, colours, transports))
    bound = bound_of(problem, colours, transports, relaxed.prices).seconds
    assert bound <= expected + 1e-9
    # By duality the program's optimum is what its prices say.
    assert bound == pytest.approx(relaxed.seconds, abs=1e-6)


@seed(0)
@settings(max_examples=100, deadline=None, database=None)
@given(problems(), st.randoms(use_true_random=False))
def test_any_prices_bound(problem: Problem, random) -> None:
    problem = replace(problem, alike=())
    colours = no_colours(problem)
    transports = transports_of(problem, colours)
    prices = Prices(
        [np.array([random.uniform(-4, 4) for _ in t.targets]) for t in transports],
        [
            np.array([[random.uniform(-1, 9) for _ in t.targets] for _ in t.sources])
            for t in transports
        ],
        np.array([random.uniform(-1, 2) for _ in problem.rows]),
    )
    bound = bound_of(problem, colours, transports, prices)
    for options in every(problem):
        more = sum(bound.more[group][option] for group, option in enumerate(options))
        assert bound.seconds + more <= seconds_of(problem, options) + 1e-9
