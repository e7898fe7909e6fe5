"""Whether a rank's graph does what the marked graph says, on all ranks of the mesh at once."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from deepcompile.capture.markers import MarkerSpec, unshard
from deepcompile.ir.mesh import Mesh
from deepcompile.passes.partition.marked import spec_of
from deepcompile.passes.partition.simulate import scattered, simulate
from deepcompile.pipeline.execute import (
    Agreement,
    Mismatch,
    NotRunnable,
    compare_values,
    make_inputs,
)

MOST_RANKS = 16
"""Of a mesh that is simulated: each rank has memory of its own, and its turn."""


def compare_on_all_ranks(
    before: GraphModule, after: GraphModule, seed: int
) -> Agreement | Mismatch:
    """Run both graphs on all ranks, simulated in this process, and compare what each rank gets.

    Ranks have their shares of one set of parameters; inputs are equal but along data axes.

    Raises:
        NotRunnable: for a mesh of more than `MOST_RANKS`, or when `before` cannot be run.
    """
    with _disable_current_modes(), torch.no_grad():
        return _compare(before, after, seed)


def _compare(before: GraphModule, after: GraphModule, seed: int) -> Agreement | Mismatch:
    specs = _parameters(before.graph)
    first = next(iter(specs.values()))
    mesh, groups = first.mesh, [axis.group for axis in first.axes]
    if mesh.ranks > MOST_RANKS:
        raise NotRunnable(f"{mesh.ranks} ranks are too many to simulate in one process")
    inputs = _inputs(before, specs, mesh, seed)
    try:
        expected = _run(before.graph, inputs, mesh, groups, seed)
    except Exception as error:
        raise NotRunnable(f"the graph before the pass: {type(error).__name__}: {error}") from error
    try:
        actual = _run(after.graph, inputs, mesh, groups, seed)
    except Exception as error:
        detail = f"the graph after it does not run: {type(error).__name__}: {error}"
        return Mismatch(detail, None, None)
    largest = 0.0
    for rank in range(mesh.ranks):
        found = compare_values(
            pytree.tree_leaves(expected[rank]), pytree.tree_leaves(actual[rank]), True
        )
        if isinstance(found, Mismatch):
            return Mismatch(f"on rank {rank}, {found.detail}", None, found.max_error)
        largest = max(largest, found.max_error)
    return Agreement(largest, True)


def _parameters(graph: Graph) -> dict[Node, MarkerSpec]:
    """By the placeholder of a rank's share."""
    found = {}
    for marker in graph.find_nodes(op="call_function", target=unshard):
        source = marker.args[0]
        while source.op == "call_function":
            source = source.all_input_nodes[0]
        found[source] = spec_of(marker)
    return found


def _inputs(
    graph: GraphModule, specs: dict[Node, MarkerSpec], mesh: Mesh, seed: int
) -> list[list[object]]:
    """Of each rank."""
    data = [axis for axis in range(len(mesh.sizes)) if mesh.is_data(axis)]
    batches: dict[tuple[int, ...], list[object]] = {}
    found = []
    for place in mesh.coordinates():
        batch = tuple(place[axis] for axis in data)
        if batch not in batches:
            batches[batch] = make_inputs(graph, seed + len(batches))
        found.append(list(batches[batch]))
    generator = torch.Generator().manual_seed(seed)
    for number, node in enumerate(graph.graph.find_nodes(op="placeholder")):
        if node not in specs:
            continue
        spec, like = specs[node], found[0][number]
        assert isinstance(like, torch.Tensor)
        # As large as a product of a row needs it to stay as large as what it is made of.
        whole = torch.randn(spec.shape, generator=generator) / max(spec.shape[-1:] or (1,)) ** 0.5
        whole = whole.to(dtype=like.dtype, device=like.device)
        for values, share in zip(found, scattered(whole, spec.placements, mesh), strict=True):
            values[number] = share
    return found


def _run(
    graph: Graph, inputs: list[list[object]], mesh: Mesh, groups: list[str], seed: int
) -> list[object]:
    # A graph may write into its inputs.
    given = [[v.clone() if isinstance(v, torch.Tensor) else v for v in mine] for mine in inputs]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return simulate(graph, given, mesh, groups)
