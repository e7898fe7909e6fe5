"""The search for where good turns bad."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from deepcompile.bisect.search import Found, Verdict, search


class Prober:
    def __init__(self, bad: set[int], skip: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.bad, self.skip = bad, skip
        self.rounds: list[list[int]] = []

    def __call__(self, limits: Sequence[int]) -> list[Verdict]:
        self.rounds.append(list(limits))
        return ["skip" if n in self.skip else "bad" if n in self.bad else "good" for n in limits]


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("first", [1, 2, 37, 99, 100])
def test_finds_the_step(first: int, jobs: int) -> None:
    ask = Prober(set(range(first, 101)))
    found = search(0, 100, ask, jobs=jobs)
    assert (found.last_good, found.first_bad) == (first - 1, first)
    assert found.is_exact
    assert found.is_monotone
    assert all(len(limits) <= max(jobs, 1) for limits in ask.rounds)


def test_asks_each_limit_once_and_few_of_them() -> None:
    ask = Prober(set(range(600, 1001)))
    search(0, 1000, ask)
    asked = [n for limits in ask.rounds for n in limits]
    assert len(asked) == len(set(asked)) <= 14


def test_says_when_good_and_bad_alternate() -> None:
    found = search(0, 16, Prober({2, 3, 9, 10, 11, 12, 14, 15, 16}), checks=20)
    assert found.is_exact
    assert not found.is_monotone
    assert set(found.against) & {2, 3, 13}
    assert "13 good" in found.describe() or "2 bad" in found.describe()


def test_goes_round_what_tells_nothing() -> None:
    found = search(0, 8, Prober({5, 6, 7, 8}, skip={3, 4}))
    assert (found.last_good, found.first_bad) == (2, 5)
    assert not found.is_exact


def test_neighbours_need_no_probe() -> None:
    ask = Prober({4})
    assert search(3, 4, ask) == Found(3, 4, {3: "good", 4: "bad"})
    assert not ask.rounds
