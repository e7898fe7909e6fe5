"""Ranks of one attempt find each other in a store with what earlier attempts left."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from deepcompile.errors import MeshError, RankError
from deepcompile.runtime.collectives.round import ranks_text, start_round


def attempt(store, ranks, size, purposes=None, timeout=5.0):
    """The name of the round, or the error, of each rank that takes part."""

    def work(rank):
        try:
            return start_round(store, rank, size, (purposes or {}).get(rank, "dp=3"), timeout)
        except (RankError, MeshError) as error:
            return error

    with ThreadPoolExecutor(size) as threads:
        return dict(zip(ranks, threads.map(work, ranks), strict=True))


def test_attempts_have_names_of_their_own():
    store = dist.HashStore()
    names = []
    for size in (3, 3, 2, 4, 1):
        found = set(attempt(store, range(size), size).values())
        assert len(found) == 1
        names += found
    assert len(set(names)) == 5
    assert not any(a.startswith(b) for a, b in itertools.permutations(names, 2))


def test_a_failed_attempt_does_not_stand_in_for_ranks_of_the_next():
    store = dist.HashStore()
    attempt(store, range(3), 3)
    outcomes = attempt(store, (0, 1), 3, timeout=0.3)
    assert "rank 2 of 3 has not come in 0.3 s" in str(outcomes[0])
    assert str(outcomes[1]) == str(outcomes[0])
    lost = attempt(store, (1, 2), 3, timeout=0.3)
    assert all("rank 0 has not come in 0.3 s" in str(error) for error in lost.values())
    assert len(set(attempt(store, range(3), 3).values())) == 1


def test_ranks_started_for_different_meshes():
    outcomes = attempt(dist.HashStore(), range(3), 3, {1: "tp=3"})
    assert all(isinstance(error, MeshError) for error in outcomes.values())
    assert "ranks 0,2 for 'dp=3'; rank 1 for 'tp=3'" in str(outcomes[2])


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([1, 0], "ranks 0,1"), ([0, 1, 2, 4, 7, 8, 9], "ranks 0-2,4,7-9")],
)
def test_ranks_as_text(ranks, text):
    assert ranks_text(ranks) == text
