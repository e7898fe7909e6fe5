"""A marked graph as the graph of one rank."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule

from deepcompile.cache_dir import plans_folder
from deepcompile.cost.rates import Rates, rates_of
from deepcompile.ir.collectives import is_launch
from deepcompile.passes.partition.decide import Question
from deepcompile.passes.partition.gather_whole import gathered_whole
from deepcompile.passes.partition.lower import Lowering
from deepcompile.passes.partition.marked import has_markers, marked_sites, merged_markers
from deepcompile.passes.partition.report import document_of
from deepcompile.passes.partition.rules import rule_of
from deepcompile.pipeline.protocol import PassContext, PassResult

_SYMBOLIC = (
    "sizes are symbols, for which no placements are planned: parameters are gathered, and along an "
    "axis that is not of data each rank computes everything; torch.compile(..., dynamic=False) "
    "gives each size a program of its own"
)


def rewrite(module: GraphModule, ctx: PassContext) -> PassResult:
    """Plan and lower a graph that reads parameters of a mesh; others stay as they are."""
    if not has_markers(module.graph):
        return PassResult(module, changed=False)
    module = merged_markers(module)
    if _has_symbolic_sizes(module):
        ctx.note("not-partitioned", reason=_SYMBOLIC)
        graph = gathered_whole(module.graph)
        return PassResult(GraphModule(module, graph), changed=True, stats=_counts(graph))
    sites, specs = marked_sites(module.graph)
    mesh = specs[0].mesh
    device = _device_of(module)
    question = Question((sites,), mesh, _rates(device), device.type)
    folder = plans_folder(ctx.options) if ctx.options.cache else None
    choice = question.answer(folder)
    solution = choice.solution
    groups = tuple(axis.group for axis in specs[0].axes)
    rules = {node: rule_of(node) for node in sites.steps()}
    lowering = Lowering(sites, mesh, groups, choice, rules, question.mover(choice))
    result = GraphModule(module, lowering.run())
    ctx.report("sharding", lambda: document_of(question, choice))
    stats = {
        "ranks": mesh.ranks,
        **_counts(result.graph),
        "modelled_microseconds": round(solution.seconds * 1e6),
        "gap_percent": round(100 * solution.gap, 2),
    }
    return PassResult(result, changed=True, stats=stats)


def _counts(graph: Graph) -> dict[str, int]:
    return {"collectives": sum(is_launch(node.target) for node in graph.nodes)}


def _has_symbolic_sizes(module: GraphModule) -> bool:
    """Whether an input is a size, or has one that is no number."""
    return any(
        isinstance(value, torch.SymInt | torch.SymFloat)
        or (isinstance(value, torch.Tensor) and not all(type(size) is int for size in value.shape))
        for node in module.graph.find_nodes(op="placeholder")
        for value in [node.meta.get("val")]
    )


def _device_of(module: GraphModule) -> torch.device:
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return value.device
    return torch.device("cpu")


def _rates(device: torch.device) -> Rates:
    """By table: each rank must decide alike, so neither threads nor anything measured counts."""
    capability = None
    if device.type == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    return rates_of(device.type, capability, 1)
