"""The graph of a rank without a plan: parameters are gathered, and each rank computes everything.

Before (tp=2):
    %w = deepcompile.unshard(%p, "128,64 | S(0) | tp=2@1 | up.weight")    f32[128, 64]
    %y = aten.mm(%x, %w)                                                  f32[s0, 64]
After:
    %l = _c10d_functional.all_gather_into_tensor(%p, 2, "1")
    %w = _c10d_functional.wait_tensor(%l)                                 f32[128, 64]
    %y = aten.mm(%x, %w)                                                  f32[s0, 64]

Gathers are marked to be computed again in backward, so that no gathered parameter is kept for it.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node

from deepcompile.capture.markers import MarkerSpec, reshard_grad, unshard
from deepcompile.ir.placements import REPLICATE, Partial, Placement, Replicate, Shard
from deepcompile.passes.partition.emit import Emitter
from deepcompile.passes.partition.marked import spec_of
from deepcompile.passes.partition.moves import Step

aten = torch.ops.aten


def gathered_whole(graph: Graph) -> Graph:
    """A copy with collectives in place of markers; after `merged_markers`."""
    specs = [spec_of(node) for node in graph.find_nodes(op="call_function", target=unshard)]
    groups = [axis.group for axis in specs[0].axes]
    trained = {
        str(node.args[1]) for node in graph.find_nodes(op="call_function", target=reshard_grad)
    }
    result = Graph()
    emit = Emitter(result, _mode_of(graph), specs[0].sizes, groups)
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.target is unshard:
            emit.behalf(node)
            emit.recomputed = str(node.args[1]) in trained
            value = _gathered(emit, copies[node.args[0]], spec_of(node))
            copies[node] = emit.strided_as(value, node)
            emit.recomputed = False
        elif node.target is reshard_grad:
            emit.behalf(node)
            value = _reduced(emit, copies[node.args[0]], spec_of(node))
            copies[node] = emit.strided_as(value, node)
        else:
            copies[node] = result.node_copy(node, copies.__getitem__)
    result.lint()
    return result


def _gathered(emit: Emitter, value: Node, spec: MarkerSpec) -> Node:
    """The whole parameter: inner axes first."""
    for axis, place in reversed(list(enumerate(spec.placements))):
        if isinstance(place, Shard) and spec.sizes[axis] > 1:
            extent = value.meta["val"].shape[place.dim] * spec.sizes[axis]
            step = Step("all_gather", axis, _within(place, extent), REPLICATE)
            value = emit.finish(step, emit.launch(step, value), value)
    return value


def _reduced(emit: Emitter, value: Node, spec: MarkerSpec) -> Node:
    """This rank's share of a gradient, averaged over data axes."""
    for axis, place in enumerate(spec.placements):
        if not isinstance(place, Shard) or spec.sizes[axis] == 1:
            continue
        place = _within(place, value.meta["val"].shape[place.dim])
        if spec.axes[axis].is_data:
            value = _mean(emit, value, axis, Step("reduce_scatter", axis, Partial("sum"), place))
        else:
            value = emit.launch(Step("part", axis, REPLICATE, place), value)
    for axis, place in enumerate(spec.placements):
        if isinstance(place, Replicate) and spec.axes[axis].is_data and spec.sizes[axis] > 1:
            value = _mean(emit, value, axis, Step("all_reduce", axis, Partial("sum"), REPLICATE))
    return value


def _mean(emit: Emitter, value: Node, axis: int, step: Step) -> Node:
    """Divided before it is sent, as in DDP: for float16."""
    scaled = emit.call(aten.div.Scalar, value, emit.sizes[axis])
    return emit.finish(step, emit.launch(step, scaled), scaled)


def _within(place: Shard, extent: int) -> Placement:
    """The same for a dimension that outer axes have divided, its pieces too."""
    number = len(place.pieces)
    return Shard(place.dim, (extent // number,) * number if number else ())


def _mode_of(graph: Graph) -> FakeTensorMode:
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()
