"""Graphs of whole parameters that a mesh is given for as an option: work is shared, they are not.

Every rank keeps whole parameters and gets whole gradients, averaged over data axes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.fx import Graph, Node

from deepcompile.capture.markers import MarkerAxis
from deepcompile.errors import MeshError
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE
from deepcompile.ir.static_inputs import is_static_input
from deepcompile.passes.partition.sites import Parameter, Sites, plain_sites


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


def whole_sites(graph: Graph, axes: tuple[MarkerAxis, ...]) -> Sites:
    """A graph whose inputs that stay where they are, parameters and buffers, are replicated."""
    placeholders = [
        node
        for node in graph.find_nodes(op="placeholder")
        if not str(node.target).startswith("tangents")
    ]
    (results,) = graph.output_node().args
    assert isinstance(results, tuple | list)
    is_joint = len(placeholders) < len(graph.find_nodes(op="placeholder"))
    gradients = list(results)[-len(placeholders) :] if is_joint and placeholders else []
    names: dict[Node, str] = {}
    landed: dict[Node, Node | None] = {}
    for number, node in enumerate(placeholders):
        if not is_static_input(node):
            continue
        value = node.meta.get("val")
        gradient = gradients[number] if number < len(gradients) else None
        if isinstance(value, torch.Tensor) and isinstance(gradient, Node):
            names[node] = node.name
            landed[node] = gradient
    whole = (REPLICATE,) * len(axes)
    sites = plain_sites(graph, names, landed)
    parameters = tuple(Parameter(p.name, p.source, p.sinks, whole, True) for p in sites.parameters)
    return Sites(graph, parameters)
