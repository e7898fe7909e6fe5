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
from deepcompile.passes.partition.descent import Search, cheapest, descend, fit
from deepcompile.passes.partition.incumbent import Incumbent
from deepcompile.passes.partition.network import network_of
from deepcompile.passes.partition.pricing import relax_priced
from deepcompile.passes.partition.problem import (
    MemoryRow,
    Problem,
    Use,
    Value,
    held_of,
    seconds_of,
)
from deepcompile.passes.partition.program import program_of
from deepcompile.passes.partition.regions import improve
from deepcompile.passes.partition.relaxation import Prices, relax
from deepcompile.passes.partition.simplify import simplify
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


def closed(problem: Problem) -> Problem:
    """With moves that are never cheaper in two."""
    values = []
    for value in problem.values:
        moves = value.moves.copy()
        for stop in range(len(moves)):
            moves = np.minimum(moves, moves[:, stop, None] + moves[None, stop, :])
        values.append(replace(value, moves=moves))
    return replace(problem, values=values)


@seed(0)
@settings(max_examples=150, deadline=None, database=None)
@given(problems())
def test_the_cheapest_of_all_where_moves_are_a_network(problem: Problem) -> None:
    check(closed(problem), 0.0)


@seed(0)
@settings(max_examples=100, deadline=None, database=None)
@given(problems(repeats=3))
@pytest.mark.slow
def test_moves_that_are_not_shared_cost_more_and_parts_of_them_less(problem: Problem) -> None:
    problem = closed(replace(problem, alike=(), rows=()))
    problem = replace(problem, costs=[np.where(np.isfinite(c), c, 100.0) for c in problem.costs])
    expected = best(problem)
    if expected == math.inf:
        return
    colours = colours_of(problem, 2)
    transports = transports_of(problem, colours)
    whole = relax(transports, program_of(problem, colours, transports))
    apart = relax(transports, program_of(problem, colours, transports, {}))
    parted = relax(transports, program_of(problem, colours, transports, {}, split=True))
    assert parted.seconds <= whole.seconds + 1e-6
    assert whole.seconds <= apart.seconds + 1e-6
    for relaxed in (whole, apart, parted):
        bound = bound_of(problem, colours, transports, relaxed.prices).seconds
        assert bound <= expected + 1e-6
    assert bound >= parted.seconds - 1e-6
    # What is made in the optimum is all that has to be shared.
    again = relax(transports, program_of(problem, colours, transports, whole.sharing))
    assert again.seconds == pytest.approx(whole.seconds, abs=1e-6)


def test_a_network_has_no_move_that_two_others_make() -> None:
    # 0 and 3 are apart on both axes; 1 and 2 are between them.
    moves = np.array([[0.0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
    value = Value(0, (0, 1, 2, 3), moves)
    problem = Problem([np.zeros(4), np.zeros(4)], [value], [Use(0, 1, (0, 1, 2, 3))])
    (transport,) = transports_of(problem, no_colours(problem))
    network = network_of(transport)
    assert network is not None
    arcs = set(zip(*(ends.tolist() for ends in network.arcs), strict=True))
    assert arcs == {(a, b) for a in range(4) for b in range(4) if a + b != 3 and a != b}
    assert network_of(replace(transport, table=moves * moves)) is None


def test_prices_for_bytes_make_a_choice_that_fits() -> None:
    problem = transformer(2, memory=0.13)
    colours = colours_of(problem, 4)
    transports = transports_of(problem, colours)
    relaxed = relax(transports, program_of(problem, colours, transports))
    assert relaxed.prices.rows[0] > 0
    finer, priced = relax_priced(problem, colours, transports, relaxed)
    options = finer.expand([int(np.argmax(part)) for part in priced.parts])
    assert all(part.max() > 1 - 1e-6 for part in priced.parts)
    assert is_possible(problem, options)
    assert seconds_of(problem, options) <= 1.01 * relaxed.seconds


@pytest.mark.parametrize("memory", [0.13, 0.3])
def test_regions_mend_what_single_changes_cannot(memory: float) -> None:
    problem = transformer(1, memory=memory)
    colours = colours_of(problem, 4)
    transports = transports_of(problem, colours)
    bound = relax(transports, program_of(problem, colours, transports)).seconds
    search = Search(colours.quotient, cheapest(colours.quotient))
    assert fit(search)
    first = seconds_of(colours.quotient, search.options)
    assert first > 1.05 * bound
    found = Incumbent(problem, simplify(problem))
    improve(problem, colours, search.options, found, bound, 0.01)
    assert found.options is not None
    assert is_possible(problem, found.options)
    assert found.seconds == pytest.approx(seconds_of(problem, found.options))
    assert found.seconds < 0.99 * first


def test_regions_need_a_choice_that_fits() -> None:
    problem = transformer(1, memory=0.13)
    colours = colours_of(problem, 4)
    found = Incumbent(problem, simplify(problem))
    improve(problem, colours, cheapest(colours.quotient), found, 0.0, 0.01)
    assert found.options is None


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


def test_the_bound_of_no_rows_and_no_uses_is_the_sum_of_the_cheapest() -> None:
    problem = Problem([np.array([3.0, 2.0]), np.array([1.0])], [], [])
    found = solve(problem)
    assert (found.options, found.seconds, found.bound, found.method) == ((1, 0), 3.0, 3.0, "lp")


def two_users(keeps_moved: bool) -> Problem:
    """One tensor, left in placement 0 and asked for in 1 forward and backward."""
    moves = np.array([[0.0, 4.0], [4.0, 0.0]])
    value = Value(0, (0,), moves, keeps_moved)
    uses = [Use(0, 1, (1, 0)), Use(0, 2, (1, 0), backward=True)]
    return Problem([np.zeros(1), np.array([0.0, 3.0]), np.array([0.0, 3.0])], [value], uses)


def test_a_move_that_is_kept_serves_backward_too() -> None:
    assert solve(two_users(True), gap=0.0).seconds == 4.0
    assert solve(two_users(True), gap=0.0).options == (0, 0, 0)


def test_a_move_that_is_not_kept_is_paid_twice() -> None:
    assert solve(two_users(False), gap=0.0).seconds == 6.0
    assert solve(two_users(False), gap=0.0).options == (0, 1, 1)


def test_forward_and_backward_have_different_colours() -> None:
    # Both users differ in nothing else.
    assert len(set(colours_of(two_users(True), 8).groups)) == 3


def test_equal_layers_have_few_colours() -> None:
    shallow, deep = (len(colours_of(transformer(n), 3).quotient.costs) for n in (8, 16))
    assert shallow == deep < len(transformer(8).costs)


def test_the_quotient_costs_what_the_problem_does() -> None:
    problem = transformer(5, memory=0.5)
    colours = colours_of(problem, 2)
    random = np.random.default_rng(0)
    for _ in range(10):
        search = Search(
            colours.quotient, [int(random.integers(len(c))) for c in colours.quotient.costs]
        )
        descend(search)
        options = colours.expand(search.options)
        expected = seconds_of(problem, options)
        assert seconds_of(colours.quotient, search.options) == pytest.approx(expected)
        assert held_of(colours.quotient.rows[0], search.options) == pytest.approx(
            held_of(problem.rows[0], options)
        )


@pytest.mark.parametrize("memory", [None, 0.13, 0.5])
def test_colours_find_what_all_groups_find(memory: float | None) -> None:
    problem = transformer(3, memory=memory)
    found = solve(problem, gap=1e-3)
    colours = no_colours(problem)
    transports = transports_of(problem, colours)
    whole = relax(transports, program_of(problem, colours, transports))
    assert found.colours < len(problem.costs)
    assert found.bound == pytest.approx(whole.seconds, rel=1e-3)
    assert found.bound <= whole.seconds * (1 + 1e-9)
    assert found.gap <= 1e-3


def test_matrices_are_split_where_that_is_cheaper_though_all_would_fit() -> None:
    problem = transformer(2, memory=1.0)
    found = solve(problem, gap=0.0)
    assert found.held[0] < 0.25 * problem.rows[0].limit
    assert found.gap < 1e-9


def test_more_room_never_costs_more() -> None:
    seconds = [solve(transformer(1, memory=part), gap=0.0).seconds for part in (0.127, 0.14, 1.0)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]


def test_two_axes() -> None:
    found = solve(transformer(1, mesh=(4, 8), memory=0.2))
    assert found.gap <= 0.01
    assert math.isfinite(found.seconds)


@pytest.mark.parametrize("keeps_moved", [True, False])
def test_a_search_knows_what_each_change_costs(keeps_moved: bool) -> None:
    problem = transformer(1, keeps_moved=keeps_moved)
    options = solve(problem).options
    search = Search(problem, options)
    for group in range(0, len(options), 5):
        pays = search.pays(group)
        for option in range(len(pays)):
            changed = [*options[:group], option, *options[group + 1 :]]
            seconds = seconds_of(problem, changed)
            if math.isfinite(seconds):
                more = seconds - seconds_of(problem, options)
                assert pays[option] - pays[options[group]] == pytest.approx(more, abs=1e-12)


def permuted(problem: Problem, order: list[int]) -> Problem:
    """The same with groups, tensors and uses in another order."""
    place = {group: at for at, group in enumerate(order)}
    last = len(problem.values) - 1
    values = [replace(v, maker=place[v.maker]) for v in reversed(problem.values)]
    uses = [replace(u, value=last - u.value, user=place[u.user]) for u in reversed(problem.uses)]
    rows = [replace(r, bytes={place[g]: b for g, b in r.bytes.items()}) for r in problem.rows]
    labels = [problem.labels[group] for group in order]
    return replace(
        problem,
        costs=[problem.costs[group] for group in order],
        values=values,
        uses=uses,
        rows=rows,
        labels=labels,
    )


def test_the_order_of_groups_decides_nothing() -> None:
    problem = transformer(2, memory=0.13)
    found = solve(problem)
    order = np.random.default_rng(0).permutation(len(problem.costs)).tolist()
    other = solve(permuted(problem, order))
    assert other.seconds == pytest.approx(found.seconds, rel=1e-12)
    assert other.bound == pytest.approx(found.bound, rel=1e-9)
    assert solve(problem).options == found.options


def test_an_answer_is_never_worse_than_the_start() -> None:
    problem = transformer(1, memory=0.2)
    found = solve(problem, gap=0.0)
    assert solve(problem, gap=10.0, start=found.options).seconds <= found.seconds


def test_groups_that_are_alike_take_one_option() -> None:
    costs = [np.array([0.0, 2.0]), np.array([5.0, 0.0]), np.array([0.0, 1.0])]
    assert solve(Problem(costs, [], [], alike=[(0, 1)])).options == (1, 1, 0)
    assert solve(Problem(costs, [], [], alike=[(0, 1), (1, 2)])).options == (1, 1, 1)


def test_alike_groups_need_the_same_options() -> None:
    with pytest.raises(ValueError, match="different options"):
        solve(Problem([np.zeros(1), np.zeros(2)], [], [], alike=[(0, 1)]))


def test_a_group_without_an_option_is_named() -> None:
    problem = Problem([np.zeros(1), np.array([math.inf])], [], [], labels=["here", "there"])
    with pytest.raises(PartitionError, match="'there'"):
        solve(problem)


def test_groups_that_contradict_each_other_are_named() -> None:
    value = Value(0, (0,), np.array([[0.0, math.inf], [1.0, 0.0]]))
    problem = Problem([np.zeros(1), np.zeros(1)], [value], [Use(0, 1, (1,))], labels=["a", "b"])
    with pytest.raises(PartitionError, match="'a' and 'b' contradict"):
        solve(problem)


def test_a_limit_that_is_too_small_says_what_would_do() -> None:
    sizes = np.array([800.0, 100.0])
    row = MemoryRow(150.0, {0: sizes, 1: sizes / 2}, 10.0, "parameters")
    costs = [np.array([0.0, 9.0]), np.array([0.0, 9.0])]
    problem = Problem(costs, [], [], [row], ["wide", "narrow"])
    with pytest.raises(PartitionError) as caught:
        solve(problem)
    assert "parameters cannot be kept within 150 bytes" in str(caught.value)
    assert "160 at least" in str(caught.value)
    assert "'wide' (100), 'narrow' (50)" in str(caught.value)
    enough = replace(problem, rows=[replace(row, limit=160.0)])
    assert solve(enough).held == (160.0,)


def test_limits_that_only_together_are_too_small() -> None:
    held = np.array([4.0, 1.0])
    rows = [MemoryRow(2.0, {0: held}, name="one"), MemoryRow(2.0, {0: held[::-1]}, name="other")]
    with pytest.raises(
        PartitionError, match="one cannot be kept within 2 bytes a rank: it takes 4"
    ):
        solve(Problem([np.zeros(2)], [], [], rows, ["both"]))


@pytest.fixture
def no_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scipy", "scipy.optimize", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_scipy")
@pytest.mark.parametrize("memory", [None, 0.13])
def test_without_scipy_a_choice_is_found_all_the_same(memory: float | None) -> None:
    problem = transformer(2, memory=memory)
    found = solve(problem)
    assert (found.method, found.fallback) == ("descent", NO_SCIPY)
    assert found.bound <= found.seconds == seconds_of(problem, found.options)
    assert all(held <= row.limit for held, row in zip(found.held, problem.rows, strict=True))
    assert solve(problem).options == found.options


@pytest.mark.usefixtures("no_scipy")
def test_without_scipy_the_start_is_not_forgotten() -> None:
    problem = two_users(True)
    assert solve(problem, start=(0, 0, 0)).seconds == 4.0


def test_no_groups() -> None:
    assert solve(Problem([], [], [])).seconds == 0.0
