"""Graphs of whole parameters that a mesh is given for as an option: work is shared, they are not.

Every rank keeps whole parameters and gets whole gradients, averaged over data axes. Inputs that
stay where they are get the markers of parameters that are replicated, and all else follows.

Before (mesh tp=2):
    %y = aten.mm(%x, %primals_2)
After:
    %w = deepcompile.unshard(%primals_2, "128,64 | R | tp=2@1 | up.weight")
    %y = aten.mm(%x, %w)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.fx import Graph, Node

from deepcompile.capture.markers import MarkerAxis, MarkerSpec, reshard_grad, unshard
from deepcompile.errors import MeshError
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE
from deepcompile.ir.static_inputs import static_name

_KEPT = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "seq_nr", "desc")


def axes_of(text: str) -> tuple[MarkerAxis, ...]:
    """The axes of the option `mesh`, with this rank's process groups.

    Args:
        text: as `Options.mesh` has it: `dp*=2@3,tp=4@5`, or without groups.

    Raises:
        MeshError: groups are not given and are not that of all processes.
    """
    axes = []
    for part in text.split(","):
        name, _, rest = part.partition("=")
        size, _, group = rest.partition("@")
        axes.append(MarkerAxis(name.rstrip("*"), int(size), name.endswith("*"), group))
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    mesh = Mesh(tuple((axis.name, axis.size) for axis in axes))
    if mesh.ranks != world:
        raise MeshError(
            f"the option mesh={mesh} has {mesh.ranks} ranks, but there are {world} processes; "
            "start as many with torchrun and call deepcompile.runtime.init first"
        )
    shared = [axis for axis in axes if axis.size > 1]
    if any(not axis.group for axis in shared):
        if len(shared) > 1:
            raise MeshError(
                f"the option mesh={mesh} names no process groups; give the DeviceMesh itself: "
                f"mesh = deepcompile.runtime.init({str(mesh)!r}), options={{'mesh': mesh}}"
            )
        whole = dist.distributed_c10d._get_default_group().group_name
        axes = [
            MarkerAxis(axis.name, axis.size, axis.is_data, whole if axis.size > 1 else "")
            for axis in axes
        ]
    return tuple(axes)


def mark_whole(graph: Graph, axes: tuple[MarkerAxis, ...]) -> tuple[int, ...]:
    """Put markers of replicated parameters around inputs that stay where they are.

    Changes `graph`, joint or without gradients. Inputs that are written to stay as they are.

    Returns:
        Positions among the inputs of those whose gradients are averaged.
    """
    placeholders = given_inputs(graph)
    output = graph.output_node()
    (returned,) = output.args
    assert isinstance(returned, tuple | list)
    results = list(returned)
    is_joint = len(placeholders) < len(graph.find_nodes(op="placeholder"))
    first_gradient = len(results) - len(placeholders) if is_joint else len(results)
    anchor = placeholders[-1].next if placeholders else output
    while anchor.op == "placeholder":
        anchor = anchor.next
    averaged: list[int] = []
    for number, node in enumerate(placeholders):
        value = node.meta["val"]
        name = static_name(node)
        if name is None or not _can_be_shared(node, value):
            continue
        shape = tuple(int(size) for size in value.shape)
        spec = str(MarkerSpec(shape, (REPLICATE,) * len(axes), axes, name))
        readers = list(node.users)
        whole = _call(graph, anchor, unshard, node, spec)
        for reader in readers:
            reader.replace_input_with(node, whole)
        place = first_gradient + number
        if place < len(results) and isinstance(gradient := results[place], Node):
            results[place] = _call(graph, output, reshard_grad, gradient, spec)
            averaged.append(number)
    output.args = (tuple(results) if isinstance(returned, tuple) else results,)
    return tuple(averaged)


def given_inputs(graph: Graph) -> list[Node]:
    """The inputs of the traced function, in order: all but the tangents of a joint graph."""
    return [
        node
        for node in graph.find_nodes(op="placeholder")
        if not str(node.target).startswith("tangents")
    ]


def _can_be_shared(node: Node, value: object) -> bool:
    written = torch.ops.aten.copy_.default
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and all(type(size) is int for size in value.shape)
        and not any(user.target is written and user.args[0] is node for user in node.users)
    )


def _call(graph: Graph, anchor: Node, target: object, value: Node, spec: str) -> Node:
    with graph.inserting_before(anchor):
        node = graph.call_function(target, (value, spec))  # type: ignore[arg-type]
    node.meta = {key: held for key, held in value.meta.items() if key in _KEPT}
    example = value.meta["val"]
    with example.fake_mode:
        node.meta["val"] = example.clone(memory_format=torch.contiguous_format)
    return node
