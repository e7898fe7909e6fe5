"""Moves between all placements of a tensor, run on simulated ranks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph

from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE, Partial, Placement, Placements, Shard, divides
from deepcompile.passes.partition.formulate import Choice
from deepcompile.passes.partition.lower import Lowering
from deepcompile.passes.partition.moves import Mover, Step
from deepcompile.passes.partition.problem import Solution
from deepcompile.passes.partition.simulate import simulate
from deepcompile.passes.partition.sites import Parameter, Sites
from tests.passes.partition.one_call import gathered, mover_of, scattered

SHAPE = (8, 12, 4)


def placements_of(mesh: Mesh) -> list[Placements]:
    """All that fit the shape: plain, in pieces, partial; each dimension in pieces on one axis."""
    single: list[Placement] = [
        REPLICATE,
        Partial("sum"),
        Partial("max"),
        *(Shard(dim) for dim in range(3)),
        Shard(0, (4, 4)),
        Shard(1, (4, 8)),
        Shard(1, (4, 4, 4)),
    ]
    found = []
    for placed in itertools.product(single, repeat=len(mesh.sizes)):
        if len({p.kind for p in placed if isinstance(p, Partial)}) > 1:
            continue
        if all(_fits(placed, dim, mesh) for dim in range(3)):
            found.append(placed)
    return found


def _fits(placed: Placements, dim: int, mesh: Mesh) -> bool:
    here = [
        (place, ranks)
        for place, ranks in zip(placed, mesh.sizes, strict=True)
        if isinstance(place, Shard) and place.dim == dim
    ]
    if len(here) > 1 and any(place.pieces for place, _ in here):
        return False
    parts = 1
    for _, ranks in here:
        parts *= ranks
    return all(divides(SHAPE[dim], place, parts) for place, _ in here)


def moved(
    value: torch.Tensor, source: Placements, target: Placements, mesh: Mesh, mover: Mover
) -> tuple[list[torch.Tensor], tuple[Step, ...]]:
    """What ranks have after a move, by way of the lowering; and its steps."""
    graph = Graph()
    with FakeTensorMode() as mode:
        node, sink = graph.placeholder("x"), graph.placeholder("y")
        node.meta["val"] = sink.meta["val"] = mode.from_tensor(value)
    output = graph.output((node,))
    output.meta = {}
    parameters = (
        Parameter("x", node, (), source, False),
        Parameter("y", sink, ((output, 0),), target),
    )
    choice = Choice({}, {"x": source, "y": target}, Solution((), 0.0, 0.0))
    local = Lowering(Sites(graph, parameters), mesh, mesh.names, choice, {}, mover).run()
    feeds = [[part, None] for part in scattered(value, source, mesh)]
    way = mover.path(tuple(value.shape), value.element_size(), source, target)
    assert way is not None
    return [result[0] for result in simulate(local, feeds, mesh, mesh.names)], way[1]


@pytest.mark.parametrize("text", ["tp=2", "tp=4", "a=2,b=2"])
def test_every_move_keeps_the_tensor(text: str) -> None:
    mesh = Mesh.of(text, ())
    value = torch.arange(8 * 12 * 4, dtype=torch.float64).reshape(SHAPE)
    mover = mover_of(mesh)
    known = placements_of(mesh)
    mover.teach(SHAPE, known)
    tried = 0
    for number, (source, target) in enumerate(itertools.product(known, repeat=2)):
        if len(mesh.sizes) > 1 and number % 9:
            continue
        if mover.path(SHAPE, 8, source, target) is None:
            assert any(isinstance(place, Partial) for place in target), (source, target)
            continue
        results, steps = moved(value, source, target, mesh, mover)
        whole = gathered(results, target, mesh)
        assert isinstance(whole, torch.Tensor), f"{source} to {target} by {steps}: {whole}"
        assert torch.allclose(whole, value), f"{source} to {target} by {steps}"
        tried += 1
    assert tried > 40


def test_reduced_and_scattered_at_once() -> None:
    mesh = Mesh.of("tp=4", ())
    mover = mover_of(mesh)
    mover.teach(SHAPE, [(Shard(1),), (Partial("sum"),)])
    _, steps = moved(torch.zeros(SHAPE), (Partial("sum"),), (Shard(1),), mesh, mover)
    assert [step.kind for step in steps] == ["reduce_scatter"]
