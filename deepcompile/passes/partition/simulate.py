"""All ranks of a mesh in one process: a rank's graph, run for every rank, collectives for all.

It needs no process group, so that any partitioned graph can be compared with the graph of one
device wherever that one runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from deepcompile.capture import rank_ops
from deepcompile.capture.markers import MarkerSpec, reshard_grad, unshard
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import Partial, Placements, Replicate, Shard

c10d = torch.ops._c10d_functional

Values = list[Any]
"""Of one node, by rank."""


def simulate(
    graph: Graph,
    inputs: Sequence[Sequence[Any]],
    mesh: Mesh,
    groups: Sequence[str],
    watch: Callable[[Node, Values], None] | None = None,
    constants: object = None,
) -> list[Any]:
    """The outputs of every rank.

    Args:
        graph: of one rank.
        inputs: of each rank.
        mesh: the ranks.
        groups: the name of each axis' process group in the graph.
        watch: is called with each node and what it is on every rank.
        constants: has the tensors that the graph names, as attributes: its module.
    """
    axes = {name: axis for axis, name in enumerate(groups)}
    ranks = range(mesh.ranks)
    feeds = [iter(values) for values in inputs]
    values: dict[Node, Values] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = [next(feed) for feed in feeds]
        elif node.op == "get_attr":
            values[node] = [operator.attrgetter(str(node.target))(constants) for _ in ranks]
        elif node.op == "output":
            return [_of_rank(node.args[0], values, rank) for rank in ranks]
        else:
            args = [_of_rank((node.args, dict(node.kwargs)), values, rank) for rank in ranks]
            values[node] = _call(node, args, mesh, axes)
        if watch is not None:
            watch(node, values[node])
    raise AssertionError("a graph without an output")


def _of_rank(argument: Any, values: Mapping[Node, Values], rank: int) -> Any:
    return torch.fx.node.map_arg(argument, lambda node: values[node][rank])


def _call(node: Node, args: Sequence[Any], mesh: Mesh, axes: Mapping[str, int]) -> Values:
    target: Any = node.target
    if target is unshard:
        spec = MarkerSpec.parse(str(node.args[1]))
        whole = gathered([args[rank][0][0] for rank in range(mesh.ranks)], spec.placements, mesh)
        return [whole.clone() for _ in range(mesh.ranks)]
    if target is reshard_grad:
        spec = MarkerSpec.parse(str(node.args[1]))
        return _shares_of_mean([args[rank][0][0] for rank in range(mesh.ranks)], spec, mesh)
    if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
        return _equally_random(target, args)
    if target in _COLLECTIVES:
        name = next(argument for argument in node.args[::-1] if isinstance(argument, str))
        groups = mesh.groups(axes[name])
        results: Values = [None] * mesh.ranks
        for members in groups:
            found = _COLLECTIVES[target]([args[rank][0] for rank in members])
            for rank, result in zip(members, found, strict=True):
                results[rank] = result
        return results
    if target in _LOCAL:
        axis = axes[str(node.args[-1])]
        places = [place[axis] for place in mesh.coordinates()]
        return [
            _LOCAL[target](*args[rank][0][:-1], places[rank], **args[rank][1])
            for rank in range(mesh.ranks)
        ]
    return [target(*plain, **named) for plain, named in args]


def _shares_of_mean(grads: Sequence[Tensor], spec: MarkerSpec, mesh: Mesh) -> Values:
    """A rank's share of a gradient that it has whole, averaged over data axes."""
    places = list(mesh.coordinates())
    results: Values = []
    for rank, place in enumerate(places):
        alike = [
            other
            for other, there in enumerate(places)
            if all(mesh.is_data(axis) or there[axis] == at for axis, at in enumerate(place))
        ]
        mean = torch.stack([grads[other] for other in alike]).mean(0)
        results.append(scattered(mean, spec.placements, mesh)[rank])
    return results


def _equally_random(target: Any, args: Sequence[Any]) -> Values:
    """All ranks draw the same numbers, as ranks that were seeded alike do."""
    state, results = torch.get_rng_state(), []
    for plain, named in args:
        torch.set_rng_state(state)
        results.append(target(*plain, **named))
    return results


def _reduced(kind: str, values: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(values))
    match kind:
        case "sum":
            return stacked.sum(0, dtype=stacked.dtype)  # of bools too
        case "avg":
            return stacked.mean(0)
        case "max":
            return stacked.amax(0)
        case "min":
            return stacked.amin(0)
    raise NotImplementedError(f"reduction {kind!r}")


def _all_reduce(calls: Sequence[Sequence[Any]]) -> Values:
    result = _reduced(calls[0][1], [call[0] for call in calls])
    return [result.clone() for _ in calls]


def _all_gather(calls: Sequence[Sequence[Any]]) -> Values:
    result = torch.cat([call[0] for call in calls])
    return [result.clone() for _ in calls]


def _reduce_scatter(calls: Sequence[Sequence[Any]]) -> Values:
    result = _reduced(calls[0][1], [call[0] for call in calls])
    return [part.clone() for part in result.chunk(len(calls))]


def _all_to_all(calls: Sequence[Sequence[Any]]) -> Values:
    parts = [call[0].split(call[2]) for call in calls]
    return [torch.cat([sent[rank] for sent in parts]) for rank in range(len(calls))]


def _broadcast(calls: Sequence[Sequence[Any]]) -> Values:
    return [calls[calls[0][1]][0].clone() for _ in calls]


_COLLECTIVES: Mapping[Any, Callable[[Sequence[Sequence[Any]]], Values]] = {
    c10d.all_reduce.default: _all_reduce,
    c10d.all_gather_into_tensor.default: _all_gather,
    c10d.reduce_scatter_tensor.default: _reduce_scatter,
    c10d.all_to_all_single.default: _all_to_all,
    c10d.broadcast.default: _broadcast,
}

_LOCAL: Mapping[Any, Callable[..., Any]] = {
    rank_ops.rank_of: lambda place, device: torch.tensor(place, device=device),
    rank_ops.own_part: rank_ops.part_of,
    rank_ops.spread_part: rank_ops.spread_of,
    rank_ops.own_value: lambda value, place: value if place == 0 else torch.zeros_like(value),
}


def scattered(value: Tensor, placements: Placements, mesh: Mesh) -> list[Tensor]:
    """What each rank has of a whole tensor; of a partial one, the first rank all."""
    found = []
    for place in mesh.coordinates():
        here = value
        for axis, placement in enumerate(placements):
            size = mesh.sizes[axis]
            if isinstance(placement, Shard):
                here = rank_ops.part_of(here, placement.dim, placement.pieces, size, place[axis])
            elif isinstance(placement, Partial) and placement.kind == "sum" and place[axis]:
                here = torch.zeros_like(here)
        found.append(here.clone())
    return found


def gathered(values: Sequence[Tensor], placements: Placements, mesh: Mesh) -> Tensor:
    """The whole tensor of what ranks have."""
    here = dict(zip(mesh.coordinates(), values, strict=True))
    for axis in reversed(range(len(placements))):
        placement = placements[axis]
        lines: dict[tuple[int, ...], list[Tensor]] = {}
        for place, value in here.items():
            lines.setdefault(place[:axis], []).append(value)
        here = {place: _together(parts, placement) for place, parts in lines.items()}
    return here[()]


def _together(parts: Sequence[Tensor], placement: Any) -> Tensor:
    if isinstance(placement, Replicate):
        return parts[0]
    if isinstance(placement, Partial):
        return _reduced(placement.kind, parts)
    ranks = len(parts)
    if not placement.pieces:
        return torch.cat(list(parts), placement.dim)
    shares = [piece // ranks for piece in placement.pieces]
    split = [part.split(shares, placement.dim) for part in parts]
    return torch.cat(
        [pieces[index] for index in range(len(shares)) for pieces in split], placement.dim
    )
