"""From a group of nodes to its kernel: loop order, axis names, stores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from ...ir.collapse import collapse_axes
from ...ir.index import ZERO, Index
from ...ir.nest import Kernel
from ..lowering.builder import Builder
from ..lowering.refusals import CannotFuse
from ..lowering.rules import lower
from ..lowering.shapes import args_of
from ..lowering.views import Position, is_view
from .groups import Group, Reject
from .plan import Plan, is_mutation, needed_outside, root
from .sum_order import sum_order

aten = torch.ops.aten


@dataclass(frozen=True)
class Built:
    """A kernel and the nodes behind its buffers, in buffer order, as (node, role)."""

    nest: Kernel
    buffers: tuple[tuple[Node, str], ...]
    outputs: tuple[Node, ...]

    def named(self, name: str) -> Built:
        """The same kernel with another name."""
        return replace(self, nest=replace(self.nest, name=name))


def build_kernel(plan: Plan, group: Group, name: str) -> Built:
    """The kernel of a group.

    Raises:
        CannotFuse: when the group, against the expectation of the merge, is no one kernel.
    """
    ordered = sorted(group.nodes, key=plan.order.__getitem__)
    stored = [node for node in ordered if needed_outside(plan, group, node)]
    axes = _loop_order(plan, group, stored or ordered)
    parallel = [name for name in axes if group.labels.get(name, "P") == "P"]
    reduced = [name for name in axes if name not in parallel]
    if plan.keeps_order:
        parallel, reduced = _in_sum_order(plan, group, parallel, reduced)
    rename = {old: Index.of(f"p{i}") for i, old in enumerate(parallel)}
    rename |= {old: Index.of(f"r{i}") for i, old in enumerate(reduced)}

    def in_memory(node: Node) -> Node | None:
        base = root(node)
        if base in group.positions or base in plan.inlined:
            return None
        return base

    builder = Builder(
        plan.facts,
        [(f"p{i}", group.axes[old]) for i, old in enumerate(parallel)],
        [(f"r{i}", group.axes[old]) for i, old in enumerate(reduced)],
        in_memory,
        lower,
        round_always=plan.round_always,
    )

    def renamed(position: Position) -> Position:
        return tuple(index.substitute(rename, {}) for index in position)

    for node, operand in group.operands.items():
        builder.reductions[node] = renamed(operand)
    for node in stored:
        into = root(args_of(node)[0]) if is_mutation(node) else None
        builder.store(node, renamed(group.positions[node]), into)
    nest = builder.finish(name)
    roles = tuple((base, role) for base, _, role in builder.buffers())
    outputs = tuple(base for base, role in roles if role == "out" and base.op != "placeholder")
    return Built(collapse_axes(nest), roles, outputs)


def _in_sum_order(
    plan: Plan, group: Group, parallel: list[str], reduced: list[str]
) -> tuple[list[str], list[str]]:
    """The axes of both kinds in the order of the sums over them, where there are such sums."""
    try:
        points, rows = sum_order(plan, group)
    except Reject as reason:
        raise CannotFuse(str(reason)) from None
    return points or parallel, rows or reduced


def _loop_order(plan: Plan, group: Group, stored: list[Node]) -> list[str]:
    """Axes from the largest to the smallest stride of the widest tensor written, else read."""
    best: tuple[int, Index] | None = None
    for node in stored:
        address = ZERO
        info = plan.facts[node]
        for at, stride in zip(group.positions[node], info.strides, strict=True):
            address = address + at * stride
        covered = len(address.names() & group.axes.keys())
        if best is None or covered > best[0]:
            best = (covered, address)
    if best is None or best[0] < len(group.axes):
        for reads in group.reads.values():
            for node, position in reads:
                if node in group.positions or is_view(node):
                    continue
                address = ZERO
                for at, stride in zip(position, plan.facts[node].strides, strict=True):
                    address = address + at * stride
                covered = len(address.names() & group.axes.keys())
                if best is None or covered > best[0]:
                    best = (covered, address)
    reference = ZERO if best is None else best[1]
    names = list(group.axes)

    def weight(name: str) -> tuple[int, int, int]:
        stride = reference.coefficient(name)
        if stride is None or stride == ZERO:
            return (1 << 30, 1 << 60, -names.index(name))
        degree = max((len(monomial) for monomial, _ in stride.terms), default=0)
        return (degree, sum(abs(c) for _, c in stride.terms), -names.index(name))

    return sorted(names, key=weight, reverse=True)
