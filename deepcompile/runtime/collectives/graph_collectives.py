"""A fingerprint read from an FX graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from deepcompile.ir.graph_types import dtype_name, expression
from deepcompile.ir.origins import user_line
from deepcompile.passes.partition.marked import CommonInput, axes_of_marker, is_marker, spec_of
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
    common: Sequence[CommonInput] = (),
) -> Fingerprint:
    """The collectives of a graph in the order of its nodes, which must be the order they run in.

    Sends and receives between two ranks are not part of it: their two ends differ.

    Args:
        graph, plan: see `Fingerprint`.
        members_of: global ranks of a group, given as the graph holds it: a name, or with newer
            torch a process group. Names depend on the rank and are no part of the result.
        label_of: of a collective's node; by default the user's line, without the folder.
        common: what ranks of an axis are given alike, in front of the collectives.
    """
    entries = [
        CollectiveEntry(
            "input", "", given.dtype, given.shape, tuple(members_of(given.group)), given.label
        )
        for given in common
    ]
    for node in graph_module.graph.nodes:
        op = _collective(node)
        if is_marker(node):
            entries += _marker_entries(node, members_of)
        elif op is not None:
            entries.append(_entry(node, op, members_of, label_of or user_line))
    return Fingerprint(graph, plan, tuple(entries))


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
    tensor = _value(node.args[0])
    return [
        CollectiveEntry(
            op=str(node.target).split(".")[1],
            reduce_op="",
            dtype=dtype_name(tensor.dtype),
            shape=", ".join(str(expression(size)) for size in tensor.shape),
            members=tuple(members_of(axis.group)),
            label=spec_of(node).label,
        )
        for axis in axes_of_marker(node)
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
