"""`combine`, `smallest_peak` and `relaxed` against all combinations of small instances."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult

from deepcompile.passes.checkpoints import combine as module
from deepcompile.passes.checkpoints.combine import (
    Choice,
    Layers,
    combine,
    peak_of,
    relaxed,
    smallest_peak,
    usable,
)
from deepcompile.passes.checkpoints.unsolved import NO_SCIPY, Unsolved

Chosen = tuple[tuple[int, int], ...]


def every(layers: Layers, start: int = 0) -> Iterator[Chosen]:
    """All ways to cover the layers from `start` on."""
    if start == len(layers):
        yield ()
        return
    for number, choice in enumerate(layers[start]):
        if start + choice.length <= len(layers):
            for rest in every(layers, start + choice.length):
                yield ((start, number), *rest)


def seconds_of(layers: Layers, chosen: Chosen) -> float:
    return sum(layers[start][number].seconds for start, number in chosen)


def best(layers: Layers, budget: int) -> float | None:
    """Seconds of the quickest combination that fits."""
    fitting = (chosen for chosen in every(layers) if peak_of(layers, chosen) <= budget)
    return min((seconds_of(layers, chosen) for chosen in fitting), default=None)


@st.composite
def instances(draw: st.DrawFn) -> tuple[tuple[Choice, ...], ...]:
    """Up to six layers of up to three choices, and here and there groups of two and four."""
    count = draw(st.integers(1, 6))
    size = st.integers(0, 12)

    def choice(length: int) -> Choice:
        saved = draw(size)
        # While a part is worked on, what it saves is there.
        return Choice(saved, saved + draw(size), draw(size), float(draw(size)), length)

    layers = []
    for start in range(count):
        choices = [choice(1) for _ in range(draw(st.integers(1, 3)))]
        for length in (2, 4):
            if start + length <= count and draw(st.booleans()):
                choices.append(choice(length))
        layers.append(tuple(choices))
    return tuple(layers)


TWO_LAYERS = ((Choice(4, 6, 6, 0.0), Choice(1, 6, 6, 2.0)),) * 2


@seed(0)
@settings(max_examples=150, deadline=None, database=None)
@given(instances(), st.integers(0, 60))
@example(TWO_LAYERS, 7)
@example(TWO_LAYERS, 10)
def test_the_quickest_of_all_that_fit(layers: Layers, budget: int) -> None:
    expected = best(layers, budget)
    found = combine(layers, budget)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.seconds == pytest.approx(expected)
    assert found.seconds == pytest.approx(seconds_of(layers, found.chosen))
    assert found.peak == peak_of(layers, found.chosen) <= budget
    assert found.chosen in set(every(layers))
    assert found.bound is not None
    assert found.bound <= found.seconds
    assert found.gap is not None
    assert found.gap >= 0


@seed(1)
@settings(max_examples=100, deadline=None, database=None)
@given(instances(), st.integers(0, 60))
def test_the_bound_is_never_above_the_optimum(layers: Layers, budget: int) -> None:
    expected = best(layers, budget)
    if expected is not None:
        assert relaxed(layers, budget) <= expected + 1e-6 * max(1.0, expected)


@seed(4)
@settings(max_examples=100, deadline=None, database=None)
@given(instances(), st.integers(0, 60))
def test_the_lean_one_saves_the_fewest_bytes(layers: Layers, budget: int) -> None:
    def saved_of(chosen: Chosen) -> int:
        return sum(layers[start][number].saved for start, number in chosen)

    fitting = [chosen for chosen in every(layers) if peak_of(layers, chosen) <= budget]
    found = combine(layers, budget, lean=True)
    if not fitting:
        assert found is None
        return
    assert found is not None
    saved = saved_of(found.chosen)
    assert saved == min(map(saved_of, fitting))
    assert found.seconds == pytest.approx(
        min(seconds_of(layers, chosen) for chosen in fitting if saved_of(chosen) == saved)
    )
    assert found.peak == peak_of(layers, found.chosen) <= budget


@seed(3)
@settings(max_examples=100, deadline=None, database=None)
@given(instances(), st.integers(0, 60))
def test_usable_is_what_combinations_that_fit_consist_of(layers: Layers, budget: int) -> None:
    fitting = [chosen for chosen in every(layers) if peak_of(layers, chosen) <= budget]
    expected = {pair for chosen in fitting for pair in chosen}
    found = [(start, id(choice)) for start, choice in usable(layers, budget)]
    assert set(found) == {(start, id(layers[start][number])) for start, number in expected}
    assert len(found) == len(expected)


def test_the_bound_mixes_nothing_that_never_fits() -> None:
    # Half of what exceeds the budget by itself would make room for half of what is quick.
    quick, slow, over = Choice(12, 12, 12, 0.0), Choice(4, 4, 4, 10.0), Choice(0, 11, 11, 1.0)
    layers = ((quick, slow, over), (Choice(0, 4, 4, 0.0),))
    assert relaxed(layers, 10) == pytest.approx(10.0)


@seed(2)
@settings(max_examples=150, deadline=None, database=None)
@given(instances())
def test_the_smallest_peak_fits_and_one_byte_less_does_not(layers: Layers) -> None:
    smallest, at = smallest_peak(layers)
    assert smallest == min(peak_of(layers, chosen) for chosen in every(layers))
    assert 0 <= at < len(layers)
    assert combine(layers, smallest) is not None
    assert combine(layers, smallest - 1) is None


@seed(3)
@settings(max_examples=60, deadline=None, database=None)
@given(instances())
def test_more_bytes_are_never_slower(layers: Layers) -> None:
    found = [combine(layers, budget) for budget in range(0, 60, 3)]
    seconds = [plan.seconds for plan in found if plan is not None]
    assert seconds == sorted(seconds, reverse=True)
    assert all(plan is not None for plan in found[len(found) - len(seconds) :])


def test_the_layer_that_pins_the_budget_is_named() -> None:
    easy, hard = (Choice(1, 3, 3, 0.0),), (Choice(1, 3, 9, 0.0),)
    assert smallest_peak((easy, easy, hard, easy)) == (11, 2)


def test_groups_save_what_layers_alone_cannot() -> None:
    alone, pair = Choice(4, 6, 6, 0.0), Choice(4, 6, 9, 1.0, length=2)
    layers = ((alone, pair), (alone,), (alone, pair), (alone,))
    assert combine(layers, 18) is not None
    found = combine(layers, 14)
    assert found is not None
    # Two groups would fit as well, and take longer.
    assert [layers[start][number].length for start, number in found.chosen] == [2, 1, 1]


def test_many_states_share_one_and_what_is_found_still_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = tuple(
        (Choice(2 ** (at % 12) + at, 4096, 4096, 0.0), Choice(0, 4096, 4096, 1.0 + 2 ** (at % 12)))
        for at in range(14)
    )
    exact = combine(layers, 9000)
    monkeypatch.setattr(module, "MOST_STATES", 64)
    rounded = combine(layers, 9000)
    assert exact is not None
    assert rounded is not None
    assert rounded.peak == peak_of(layers, rounded.chosen) <= 9000
    assert rounded.bound is not None
    assert rounded.bound <= exact.seconds <= rounded.seconds <= 1.1 * exact.seconds


def test_the_leanest_is_found_with_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STATES", 3)
    layers = tuple(
        (Choice(7 * at + 5, 50, 50, 0.0), Choice(3 * at, 50, 50, 1.5)) for at in range(9)
    )
    smallest, _ = smallest_peak(layers)
    assert combine(layers, smallest) is not None
    assert combine(layers, smallest - 1) is None


def test_without_scipy_there_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bound = combine(TWO_LAYERS, 7)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    without = combine(TWO_LAYERS, 7)
    with pytest.raises(Unsolved, match=NO_SCIPY):
        relaxed(TWO_LAYERS, 7)
    assert with_bound is not None
    assert without is not None
    assert (with_bound.no_bound, without.no_bound) == (None, NO_SCIPY)
    assert (without.bound, without.gap) == (None, None)
    assert without.chosen == with_bound.chosen


def test_a_solver_that_fails_is_not_taken_for_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = OptimizeResult(status=4, message="Numerical\ndifficulties.", fun=None)
    monkeypatch.setattr("scipy.optimize.linprog", lambda *args, **kwargs: broken)
    found = combine(TWO_LAYERS, 7)
    assert found is not None
    assert found.bound is None
    assert found.no_bound == "HiGHS failed with status 4: Numerical difficulties."


def test_nothing_to_place_fits_anything() -> None:
    found = combine((), 0)
    assert found is not None
    assert (found.chosen, found.seconds, found.peak) == ((), 0.0, 0)
    assert smallest_peak(()) == (0, 0)
