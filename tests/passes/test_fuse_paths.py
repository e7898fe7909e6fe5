"""Paths between units that merge, against a search through the whole graph."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.fx import Graph, Node

from deepcompile.passes.fuse_rows.paths import Paths


def random_edges(seed: int, count: int = 14) -> dict[Node, list[Node]]:
    """For each node, some of those before it."""
    draw = random.Random(seed)
    graph = Graph()
    nodes = [graph.call_function(torch.relu, ()) for _ in range(count)]
    return {
        node: draw.sample(nodes[:number], min(number, draw.randrange(4)))
        for number, node in enumerate(nodes)
    }


def leaves(edges: dict[Node, list[Node]], units: list[set[Node]], left: int, right: int) -> bool:
    """Whether a path between two units passes through a third, by walking all of them."""

    def after(unit: int) -> set[int]:
        sources = units[unit]
        readers = {node for node, read in edges.items() if sources & set(read)}
        return {number for number, nodes in enumerate(units) if nodes & readers} - {unit}

    def reached(start: int, end: int) -> bool:
        waiting = list(after(start) - {end})
        seen = set(waiting)
        while waiting:
            following = after(waiting.pop())
            if end in following:
                return True
            waiting += following - seen
            seen |= following
        return False

    return reached(left, right) or reached(right, left)


@pytest.mark.parametrize("seed", range(20))
def test_paths_are_those_of_a_search_however_units_merged(seed: int) -> None:
    edges = random_edges(seed)
    paths = Paths(edges)
    units = [{node} for node in edges]
    draw = random.Random(seed)
    while len(units) > 1:
        possible = []
        for left, right in itertools.combinations(range(len(units)), 2):
            one, other = next(iter(units[left])), next(iter(units[right]))
            expected = leaves(edges, units, left, right)
            assert paths.leave(one, other) == expected
            for first, second in ((left, right), (right, left)):
                read = {source for node in units[first] for source in edges[node]}
                found = paths.comes_after(next(iter(units[first])), next(iter(units[second])))
                assert found == bool(read & units[second])
            if not expected:
                possible.append((left, right))
        # Some pair can always merge: neighbours in an order that edges follow.
        left, right = draw.choice(possible)
        paths.merge(next(iter(units[left])), next(iter(units[right])))
        units[left] |= units.pop(right)
