"""The order in which sums add under `deterministic`: that of the sum itself, in whatever kernel.

The bits of a sum are a matter of order. Here it is one of the tensor that is summed: its elements
as they lie in memory, outermost dim first. A kernel walks its rows (or its points, for sums of
columns) in the order of the sums it has; sums of different orders do not share a kernel. How one
order becomes additions is settled by the code generator (`cpp_reductions.py`).
"""

from __future__ import annotations

from torch.fx import Node

from ...ir.index import ONE, ZERO, Index
from ...ir.monoids import depends_on_order
from ...ir.ops import REGISTER_OF
from ..lowering.reductions import reduction_of
from ..lowering.shapes import memory_order
from .groups import Group, Reject, covered_axes, radix
from .plan import Plan


def stands_alone(plan: Plan, group: Group) -> bool:
    """Whether nothing may join a group, nor be computed again in it.

    A sum of all elements of a tensor knows no rows: how a kernel splits it into rows, partial sums
    and shares of threads would follow from what else is in there. In Triton that is so for all
    sums: in which order a tile is reduced depends on the memory that its kernel reads.
    """
    if not plan.keeps_order or (group.labels and not plan.for_triton):
        return False
    return any(_is_ordered(plan, node) for node in group.operands)


def sum_order(plan: Plan, group: Group) -> tuple[list[str], list[str]]:
    """The parallel and the reduced axes, outermost first, as the sums of a group walk them.

    A list is empty when no sum runs over axes of that kind.

    Raises:
        Reject: when two sums walk the same axes in different orders.
    """
    found: dict[bool, list[str]] = {}
    parallel = group.names("P") if group.labels else frozenset(group.axes)
    for node in group.operands:
        axes = covered_axes(group, node)
        if not axes or not _is_ordered(plan, node):
            continue
        walk = radix(_place_in_sum(plan, group, node), group.axes)
        if walk is None or set(walk) != axes:
            raise Reject("a sum does not run over its elements in the order they lie in memory")
        if found.setdefault(axes <= parallel, walk) != walk:
            raise Reject("they sum in different orders")
    return found.get(True, []), found.get(False, [])


def _place_in_sum(plan: Plan, group: Group, node: Node) -> Index:
    """The number of an element among those that are summed into one, as they lie in memory."""
    reduction = reduction_of(node)
    assert reduction is not None
    operand, source = group.operands[node], plan.facts[reduction.source]
    place, stride = ZERO, ONE
    for dim in reversed([dim for dim in memory_order(source) if dim in reduction.dims]):
        place = place + operand[dim] * stride
        stride = stride * source.shape[dim]
    return place


def _is_ordered(plan: Plan, node: Node) -> bool:
    reduction = reduction_of(node)
    assert reduction is not None
    return depends_on_order(reduction.kind, REGISTER_OF[plan.facts[node].dtype])
