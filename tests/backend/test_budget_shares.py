"""The quickest ways to run graphs that share a budget, against all combinations and each call."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random

import pytest

from deepcompile.budget.shares import choose, smallest
from deepcompile.budget.ways import Member, Way


def way(saved: int, peak: int, seconds: float = 0.0) -> Way:
    return Way(None, True, saved, peak, peak, seconds)


def test_shares_are_the_quickest_of_all_combinations_that_fit() -> None:
    ways = (way(40, 50), way(25, 45, 1.0), way(5, 30, 2.5))
    members = [Member(5, 3, ways), Member(2, 7, ways), Member(1, 1, ways)]

    def peak(chosen: tuple[Way, ...]) -> int:
        found, saved, later = 0, 0, 11
        for member, way in zip(members, chosen, strict=True):
            later -= member.gradients
            found = max(found, 8 + saved + max(way.forward, way.backward + later))
            saved += way.saved
        return found

    every = list(itertools.product(ways, repeat=3))
    assert smallest(members) == min(map(peak, every))
    for budget in range(smallest(members) - 1, 150):
        fitting = [chosen for chosen in every if peak(chosen) <= budget]
        shares = choose(members, budget)
        if not fitting:
            assert shares is None
            continue
        assert shares is not None
        chosen = tuple(share.way for share in shares if share.way)
        assert peak(chosen) <= budget
        least = min(sum(way.seconds for way in chosen) for chosen in fitting)
        assert sum(way.seconds for way in chosen) == least
        saved = [way.saved for way in chosen]
        assert [share.others for share in shares] == [3, 6 + saved[0], 7 + saved[0] + saved[1]]
        assert [share.later for share in shares] == [8, 1, 0]
        assert [share.first for share in shares] == [True, False, False]


Call = tuple[int, int]
"""The number of a graph, and of the set of parameters that it is called with."""


def peak_of_calls(calls: Sequence[Call], members: Sequence[Member], ways: Sequence[Way]) -> int:
    """What a step of these calls holds, one after the other."""
    held, peak = 0, 0
    for number, _ in calls:
        peak = max(peak, held + ways[number].forward)
        held += ways[number].saved
    trained: set[Call] = set()
    for call in reversed(calls):
        held -= ways[call[0]].saved
        gradients = sum(members[number].gradients for number, _ in trained)
        peak = max(peak, held + gradients + ways[call[0]].backward)
        trained.add(call)
    return peak + sum(member.pinned + member.further for member in members)


def members_of_calls(calls: Sequence[Call], ways: Sequence[tuple[Way, ...]]) -> list[Member]:
    found = []
    places = [[at for at, call in enumerate(calls) if call[0] == n] for n in range(len(ways))]
    for number, (mine, choices) in enumerate(zip(places, ways, strict=True)):
        sets = len({calls[at] for at in mine})
        among = any(
            mine[0] < other[-1] and other[0] < mine[-1] for other in places if other is not mine
        )
        found.append(Member(5, 3 + number, choices, len(mine), sets, 5 * (sets - 1), among))
    return found


def random_ways(random: Random) -> tuple[Way, ...]:
    found = []
    for _ in range(4):
        saved = random.randrange(20)
        forward, backward = saved + random.randrange(9), saved + random.randrange(20)
        found.append(Way(None, True, saved, forward, backward, random.randrange(9)))
    return tuple(found)


@pytest.mark.parametrize("alternate", [False, True])
def test_calls_are_planned_as_they_run(alternate: bool) -> None:
    """Calls in a row exactly, those that alternate with something to spare."""
    random, spare = Random(0), []
    for _ in range(60):
        sets = random.choice((1, 2, 9))
        numbers = [0, *[1] * random.randrange(1, 6), 2]
        if alternate:
            numbers[1:-1] = [1, 2] * random.randrange(2, 5)
        calls = [(number, at % sets) for at, number in enumerate(numbers)]
        if not alternate:
            calls[0], calls[-1] = (0, 0), (2, 0)
        ways = [random_ways(random) for _ in range(3)]
        members = members_of_calls(calls, ways)
        exact = {every: peak_of_calls(calls, members, every) for every in itertools.product(*ways)}
        least, true_least = smallest(members), min(exact.values())
        spare.append(least - true_least)
        for budget in range(least, least + 40, 7):
            shares = choose(members, budget)
            assert shares is not None
            chosen = tuple(share.way for share in shares if share.way)
            assert exact[chosen] <= budget
            fitting = [every for every in exact if exact[every] <= budget]
            quickest = min(seconds_of(members, every) for every in fitting)
            if not alternate:
                assert seconds_of(members, chosen) == quickest
            shown = [
                member.pinned + share.others
                + max(share.way.forward, share.way.backward + share.later)
                for member, share in zip(members, shares, strict=True) if share.way
            ]  # fmt: skip
            assert exact[chosen] <= max(shown) <= budget
        assert choose(members, least - 1) is None
    assert min(spare) >= 0
    assert alternate or max(spare) == 0


def seconds_of(members: Sequence[Member], ways: Sequence[Way]) -> float:
    return sum(member.calls * way.seconds for member, way in zip(members, ways, strict=True))
