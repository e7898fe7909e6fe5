"""The state of one run of the pass, and what its parts ask of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.fx import GraphModule, Node

from ...pipeline.protocol import PassContext
from ..lowering.probe import Access
from ..lowering.reductions import is_tuple_reduction, reduction_of
from ..lowering.shapes import Facts, memory_order
from ..lowering.views import is_split, is_view, view_source
from .groups import Group

aten = torch.ops.aten


def root(node: Node) -> Node:
    """The node whose memory a view reads; the node itself when it is no view."""
    while is_view(node):
        node = view_source(node)
    return node


def is_mutation(node: Node) -> bool:
    """Whether the node writes into one of its inputs in a way kernels know."""
    return node.op == "call_function" and node.target is aten.copy_.default


@dataclass
class Plan:
    """The state of one run of the pass."""

    graph: GraphModule
    ctx: PassContext
    order: dict[Node, int]
    facts: Facts = field(default_factory=Facts)
    accesses: dict[Node, Access] = field(default_factory=dict)
    inlined: dict[Node, Access] = field(default_factory=dict)
    group_of: dict[Node, Group] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    mutated: set[Node] = field(default_factory=set)
    rejected: dict[tuple[Node, Node], str] = field(default_factory=dict)

    @property
    def round_always(self) -> bool:
        """Whether every op rounds to its dtype, as eager does.

        Else a value that is read in the kernel that made it has more digits than one from memory.
        """
        return getattr(self.ctx.options, "numerics", "fast") == "eager" or self.keeps_order

    @property
    def keeps_order(self) -> bool:
        """Whether sums add in an order of their own, whatever they share a kernel with."""
        return bool(getattr(self.ctx.options, "deterministic", False))

    @cached_property
    def for_triton(self) -> bool:
        """Whether kernels will be in Triton, where the layout of a tile is Triton's own choice."""
        codegen = getattr(self.ctx.options, "codegen", "auto")
        values = (node.meta.get("val") for node in self.graph.graph.nodes)
        on_gpu = any(isinstance(v, torch.Tensor) and v.device.type != "cpu" for v in values)
        return codegen == "triton" or (codegen == "auto" and on_gpu)


def consumers(plan: Plan, node: Node) -> Iterable[Node]:
    """The nodes that read a node's memory, seen through views."""
    stack = list(node.users)
    seen: set[Node] = set()
    while stack:
        user = stack.pop()
        if user in seen:
            continue
        seen.add(user)
        if is_view(user) or is_split(user) or is_tuple_reduction(user):
            stack.extend(user.users)
            continue
        yield user


def never_stored(plan: Plan, node: Node) -> bool:
    return node in plan.inlined and node not in plan.group_of


def needed_outside(plan: Plan, group: Group, node: Node) -> bool:
    """Whether memory must have the node: something outside of the group reads it."""
    if is_mutation(node):
        return True
    for user in consumers(plan, node):
        if plan.group_of.get(user) is group:
            continue
        if never_stored(plan, user):
            # It is computed in each of its readers: those read the node in its place.
            if needed_outside(plan, group, user):
                return True
            continue
        return True
    return False


def orient(plan: Plan, group: Group, node: Node, access: Access) -> None:
    """Label the axes of a lone reduction: rows where it is contiguous, else sums over the rows."""
    reduction = reduction_of(node)
    if reduction is None or access.operand is None:
        return
    dims = {
        dim: next(iter(index.names())) for dim, index in enumerate(access.operand) if index.names()
    }
    reduced = {name for dim, name in dims.items() if dim in reduction.dims}
    kept = set(group.axes) - reduced
    if not kept:
        if reduction.kind in ("argmax", "argmin", "welford", "lse"):
            group.labels = dict.fromkeys(group.axes, "R")
        return
    if not reduced:
        return
    rows = True
    if reduction.kind in ("sum", "prod", "max", "min", "any", "all"):
        order = [dim for dim in memory_order(plan.facts[reduction.source]) if dim in dims]
        innermost = dims[order[-1]] if order else None
        lengths = _hint(group, reduced), _hint(group, kept)
        outer = all(dim in reduction.dims for dim in order[: len(reduced)])
        if innermost not in reduced and outer and lengths[0] >= 32 and lengths[1] <= 1 << 16:
            rows = False
    group.labels = {name: "R" if (name in reduced) == rows else "P" for name in group.axes}


def _hint(group: Group, names: Iterable[str]) -> int:
    total = 1
    for name in names:
        constant = group.axes[name].constant()
        total *= 64 if constant is None else constant
    return total
