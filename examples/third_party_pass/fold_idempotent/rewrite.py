"""Decide on the graph as it is; copy it only if something is to be done."""

from __future__ import annotations

import copy

import torch
from torch.fx import GraphModule, Node

from deepcompile.pipeline.protocol import PassContext, PassResult

aten = torch.ops.aten
IDEMPOTENT = frozenset({aten.relu.default, aten.abs.default})
ROUNDING = frozenset(
    {aten.floor.default, aten.ceil.default, aten.trunc.default, aten.round.default}
)


def rewrite(module: GraphModule, ctx: PassContext, *, rounding: bool) -> PassResult:
    """`module` without the second of two equal idempotent ops in a row."""
    targets = IDEMPOTENT | ROUNDING if rounding else IDEMPOTENT
    outputs = set(module.graph.output_node().all_input_nodes)
    found = [
        node
        for node in module.graph.nodes
        # `allow` comes last: each time it says yes counts as a rewrite, also while bisecting.
        if _is_second(node, targets) and node not in outputs and ctx.allow("apply-once", node)
    ]
    if not found:
        return PassResult(module, changed=False)
    # A pass never changes the graph that it was given: verification runs both.
    graph = copy.deepcopy(module.graph)
    copies = dict(zip(module.graph.nodes, graph.nodes, strict=True))
    for node in found:
        second = copies[node]
        second.replace_all_uses_with(second.all_input_nodes[0])
        graph.erase_node(second)
    result = GraphModule(module, graph)
    result.meta = dict(module.meta)
    return PassResult(result, changed=True, stats={"apply-once": len(found)})


def _is_second(node: Node, targets: frozenset[object]) -> bool:
    if node.op != "call_function" or node.target not in targets:
        return False
    return node.all_input_nodes[0].target is node.target
