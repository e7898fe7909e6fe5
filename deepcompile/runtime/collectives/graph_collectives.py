"""A fingerprint read from an FX graph."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from deepcompile.capture.markers import MarkerAxis, MarkerSpec, reshard_grad, unshard
from deepcompile.ir.graph_types import dtype_name, expression
from deepcompile.ir.origins import origin_of
from deepcompile.ir.placements import Shard, placements_text
from deepcompile.runtime.collectives.fingerprint import CollectiveEntry, Fingerprint

_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd")
_OPS = (
    "all_gather_into_tensor",
    "all_gather_into_tensor_coalesced",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all_single",
    "broadcast",
    "reduce_scatter_tensor",
    "reduce_scatter_tensor_coalesced",
)


def fingerprint_of(
    graph_module: GraphModule,
    graph: str,
    plan: str,
    members_of: Callable[[Any], tuple[int, ...]],
    label_of: Callable[[Node], str] | None = None,
) -> Fingerprint:
    """The collectives of a graph in the order of its nodes, which must be the order they run in.

    Sends and receives between two ranks are not part of it: their two ends differ.

    Args:
        graph, plan: see `Fingerprint`.
        members_of: global ranks of a group, given as the graph holds it: a name, or with newer
            torch a process group. Names depend on the rank and are no part of the result.
        label_of: of a collective's node; by default the user's line, without the folder.
    """
    entries: list[CollectiveEntry] = []
    for node in graph_module.graph.nodes:
        op = _collective(node)
        if node.target in (unshard, reshard_grad):
            entries += _marker_entries(node, members_of)
        elif op is not None:
            entries.append(_entry(node, op, members_of, label_of or user_line))
    return Fingerprint(graph, plan, tuple(entries))


def plan_of(graph_module: GraphModule) -> str:
    """What a marked graph says of parameters on a mesh, as a short digest; equal on all ranks."""
    specs = {
        MarkerSpec.parse(str(node.args[1]))
        for node in graph_module.graph.find_nodes(op="call_function", target=unshard)
    }
    if not specs:
        return ""
    texts = sorted(
        f"{spec.label} {spec.shape} {placements_text(spec.placements)} {spec.mesh}"
        for spec in specs
    )
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def user_line(node: Node) -> str:
    """`model.py:12`; ranks may have the program in different folders."""
    return os.path.basename(origin_of(node) or "")


def _collective(node: Node) -> str | None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    namespace, _, name = node.target._schema.name.partition("::")
    if namespace not in _NAMESPACES:
        return None
    name = name.removesuffix("_out").removesuffix("_")
    return name if name in _OPS else None


def _marker_entries(
    node: Node, members_of: Callable[[Any], tuple[int, ...]]
) -> list[CollectiveEntry]:
    """What a marker does when it runs as it is, on each axis of its mesh."""
    spec = MarkerSpec.parse(str(node.args[1]))
    tensor = _value(node.args[0])

    def moves(axis: MarkerAxis, placement: Any) -> bool:
        if node.target is unshard:
            return axis.size > 1 and isinstance(placement, Shard)
        return axis.size > 1 and axis.is_data

    return [
        CollectiveEntry(
            op="unshard" if node.target is unshard else "reshard_grad",
            reduce_op="",
            dtype=dtype_name(tensor.dtype),
            shape=", ".join(map(str, tensor.shape)),
            members=tuple(members_of(axis.group)),
            label=spec.label,
        )
        for axis, placement in zip(spec.axes, spec.placements, strict=True)
        if moves(axis, placement)
    ]


def _entry(
    node: Node,
    op: str,
    members_of: Callable[[Any], tuple[int, ...]],
    label_of: Callable[[Node], str],
) -> CollectiveEntry:
    arguments = _arguments(node)
    inputs = arguments.get("inputs", arguments.get("input"))
    tensors = [_value(n) for n in (inputs if isinstance(inputs, list | tuple) else [inputs])]
    shapes = [", ".join(str(expression(size)) for size in tensor.shape) for tensor in tensors]
    if op == "all_to_all_single" and _uneven(arguments):
        rest = shapes[0].partition(", ")[2]
        shapes = [f"*, {rest}" if rest else "*"]  # each rank has a size of its own there
    group = arguments["group_name"]
    if isinstance(group, Node):
        assert isinstance(group.target, str)
        group = getattr(group.graph.owning_module, group.target)
    reduce_op = arguments.get("reduce_op", "")
    if op == "broadcast":
        reduce_op = f"from {arguments['src']}"
    return CollectiveEntry(
        op=op,
        reduce_op=str(reduce_op),
        dtype=";".join(dtype_name(tensor.dtype) for tensor in tensors),
        shape=";".join(shapes),
        members=tuple(members_of(group)),
        label=label_of(node),
    )


def _arguments(node: Node) -> dict[str, Any]:
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(schema, node.args, strict=False)), **node.kwargs}


def _value(node: Any) -> torch.Tensor:
    value = node.meta.get("val") if isinstance(node, Node) else node
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"input {node} of a collective has no type; the graph was not traced")
    return value


def _uneven(arguments: dict[str, Any]) -> bool:
    splits = [*arguments["output_split_sizes"], *arguments["input_split_sizes"]]
    return not all(isinstance(size, int) and size == splits[0] for size in splits)
