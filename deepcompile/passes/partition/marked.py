"""Graphs in which markers stand where parameters of a mesh are read: what is to be partitioned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from deepcompile.capture.markers import MarkerAxis, MarkerSpec, reshard_grad, unshard
from deepcompile.errors import PartitionError
from deepcompile.ir.graph_types import dtype_name, expression
from deepcompile.ir.origins import user_line
from deepcompile.ir.placements import Shard, placements_text
from deepcompile.passes.partition.sites import Parameter, Sites

aten = torch.ops.aten


def has_markers(graph: Graph) -> bool:
    """Whether a graph reads parameters that are on a mesh."""
    return bool(graph.find_nodes(op="call_function", target=unshard))


def spec_of(node: Node) -> MarkerSpec:
    """Of a marker."""
    return MarkerSpec.parse(str(node.args[1]))


def is_marker(node: Node) -> bool:
    """Whether a node stands where a parameter is read or its gradient is put on the mesh."""
    return node.target is unshard or node.target is reshard_grad


def axes_of_marker(node: Node) -> list[MarkerAxis]:
    """The axes on which a marker communicates when it runs as it is."""
    spec = spec_of(node)
    gathers = node.target is unshard
    return [
        axis
        for axis, placement in zip(spec.axes, spec.placements, strict=True)
        if axis.size > 1 and (isinstance(placement, Shard) if gathers else axis.is_data)
    ]


def plan_of(graph: Graph) -> str:
    """What markers say of parameters on a mesh, as a short digest: equal on all ranks."""
    specs = {spec_of(node) for node in graph.find_nodes(op="call_function", target=unshard)}
    texts = sorted(
        f"{spec.label} {spec.shape} {placements_text(spec.placements)} {spec.mesh}"
        for spec in specs
    )
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] if texts else ""


@dataclass(frozen=True)
class CommonInput:
    """A tensor that the ranks of a tensor axis are given alike.

    Attributes:
        group: of the axis.
        dtype, shape: as a fingerprint has them.
        label: what the user calls it and the line that reads it first, as far as they are known.
    """

    group: str
    dtype: str
    shape: str
    label: str


def common_inputs(graph: Graph, names: Sequence[str] = ()) -> tuple[CommonInput, ...]:
    """Of each tensor axis; of the tensors that are no parameters. A marked graph's, not lowered.

    Args:
        graph: as it was captured.
        names: what the user calls these tensors; not used where they are not as many.
    """
    sources = graph.find_nodes(op="call_function", target=unshard)
    if not sources:
        return ()
    held = _before(sources)
    tensors = [
        (node, node.meta["val"])
        for node in graph.find_nodes(op="placeholder")
        if node not in held
        and not str(node.target).startswith("tangents")
        and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    known = names if len(names) == len(tensors) else [""] * len(tensors)
    return tuple(
        CommonInput(
            axis.group,
            dtype_name(value.dtype),
            ", ".join(str(expression(size)) for size in value.shape),
            " in ".join(part for part in (name, _first_line(node)) if part),
        )
        for axis in spec_of(sources[0]).axes
        if axis.size > 1 and not axis.is_data
        for (node, value), name in zip(tensors, known, strict=True)
    )


def _first_line(node: Node) -> str:
    return next((line for n in node.users if (line := user_line(n))), "")


def gather_again(graph: Graph) -> None:
    """Let backward gather parameters again where markers are left: they would be kept whole."""
    for node in graph.find_nodes(op="call_function", target=unshard):
        node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE


def merged_markers(module: GraphModule) -> GraphModule:
    """A copy in which each parameter is read once and its gradient is put on the mesh once.

    Before:
        %w1 = unshard(%p, spec)          %w2 = unshard(%p, spec)
        %g = add(reshard_grad(%g1, spec), reshard_grad(%g2, spec))
    After:
        %w1 = unshard(%p, spec)
        %g = reshard_grad(add(%g1, %g2), spec)
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(module.graph, copies), type_expr=module.graph.output_node().type)
    graph.output_node().meta = dict(module.graph.output_node().meta)
    first: dict[object, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.alias.default, aten.detach.default) and _leads_to_marker(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is unshard:
            known = first.setdefault((node.args[0], node.args[1]), node)
            if known is not node:
                node.replace_all_uses_with(known)
                graph.erase_node(node)
        elif node.target is aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
            _merge_sum(graph, node)
    return GraphModule(module, graph)


def _leads_to_marker(node: Node) -> bool:
    return bool(node.users) and all(
        user.target is unshard
        or (user.target in (aten.alias.default, aten.detach.default) and _leads_to_marker(user))
        for user in node.users
    )


def _merge_sum(graph: Graph, node: Node) -> None:
    left, right = node.args
    if not (isinstance(left, Node) and isinstance(right, Node)) or left is right:
        return
    if left.target is not reshard_grad or right.target is not reshard_grad:
        return
    if left.args[1] != right.args[1] or len(left.users) > 1 or len(right.users) > 1:
        return
    with graph.inserting_before(node):
        whole = graph.call_function(aten.add.Tensor, (left.args[0], right.args[0]))
        whole.meta = dict(node.meta) | {"val": left.args[0].meta["val"]}  # type: ignore[union-attr]
        share = graph.call_function(reshard_grad, (whole, left.args[1]))
        share.meta = dict(left.meta)
    node.replace_all_uses_with(share)
    for gone in (node, left, right):
        graph.erase_node(gone)


def marked_sites(graph: Graph) -> tuple[Sites, tuple[MarkerSpec, ...]]:
    """A graph's parameters as its markers say, and their specs; after `merged_markers`.

    Raises:
        PartitionError: for parameters of different meshes in one graph.
    """
    sources = graph.find_nodes(op="call_function", target=unshard)
    gradients = graph.find_nodes(op="call_function", target=reshard_grad)
    specs = [spec_of(node) for node in sources]
    for spec in specs:
        if spec.axes != specs[0].axes:
            raise PartitionError(
                f"{spec.label!r} lies on the mesh {spec.mesh}, {specs[0].label!r} on "
                f"{specs[0].mesh}: one graph runs on one mesh"
            )
    sinks: dict[str, list[tuple[Node, int]]] = {}
    for node in gradients:
        sinks.setdefault(str(node.args[1]), []).append((node, 0))
    parameters = tuple(
        Parameter(
            _unique_label(spec, node, sources),
            node,
            tuple(sinks.get(str(node.args[1]), ())),
            spec.placements,
            bool(sinks.get(str(node.args[1]))),
        )
        for node, spec in zip(sources, specs, strict=True)
    )
    hidden = {*_before(sources), *_behind(gradients)}
    return Sites(graph, parameters, frozenset(hidden)), tuple(specs)


def _unique_label(spec: MarkerSpec, node: Node, sources: Iterable[Node]) -> str:
    """A parameter's name; of several with one name, which only models in models have, numbered."""
    same = [other for other in sources if spec_of(other).label == spec.label]
    return spec.label if len(same) == 1 else f"{spec.label}#{same.index(node)}"


def _before(sources: Iterable[Node]) -> set[Node]:
    """What leads from placeholders to markers, placeholders included."""
    found: set[Node] = set()
    queue = [node for source in sources for node in source.all_input_nodes]
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue.extend(node.all_input_nodes)
    return found


def _behind(gradients: Iterable[Node]) -> set[Node]:
    """Shares of gradients, and what is made of them."""
    found: set[Node] = set()
    queue = list(gradients)
    while queue:
        node = queue.pop()
        if node not in found and node.op != "output":
            found.add(node)
            queue.extend(node.users)
    return found
