"""Choosing groups: greedy by bytes saved over all edges, without making a cycle."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node

from ...ir.collectives import communicates
from ...pipeline.protocol import PassContext, PassResult
from ..lowering.philox import register_philox
from ..lowering.probe import probe
from ..lowering.reductions import is_tuple_reduction, reduction_of
from ..lowering.refusals import CannotFuse, CannotLower
from ..lowering.rules import is_scalar_rule
from ..lowering.shapes import args_of
from ..lowering.views import Position, is_split, is_view
from .build import build_kernel
from .emit import emit_graph
from .groups import Group, Reject, cross_reads, merge
from .paths import Paths
from .plan import (
    Plan,
    consumers,
    is_mutation,
    needed_outside,
    never_stored,
    orient,
    root,
)
from .sum_order import stands_alone, sum_order

aten = torch.ops.aten


def fuse(graph: GraphModule, ctx: PassContext, *, max_nodes: int, max_buffers: int) -> PassResult:
    """Replace groups of pointwise and reduction nodes by kernels."""
    if hasattr(torch.ops.deepcompile, "philox_uniform"):
        register_philox()
    plan = Plan(graph, ctx, {node: number for number, node in enumerate(graph.graph.nodes)})
    _probe_all(plan)
    plan.mutated = {root(args_of(n)[0]) for n in graph.graph.nodes if is_mutation(n)}
    _inline_scalars(plan)
    _start_groups(plan)
    if not plan.groups:
        return PassResult(graph, False, {})
    _merge_all(plan, _paths(plan), max_nodes, max_buffers)
    _dissolve(plan, max_nodes)
    rejected = _still_apart(plan)
    for producer, consumer, reason in rejected:
        ctx.note("fusion-rejected", producer=producer.name, consumer=consumer.name, reason=reason)
    result, kernels = emit_graph(plan)
    fused = sum(len(group.nodes) for group in plan.groups.values())
    stats = {"kernels": kernels, "nodes": fused, "rejected": len(rejected)}
    return PassResult(result, True, stats)


def _still_apart(plan: Plan) -> list[tuple[Node, Node, str]]:
    """The rejected edges whose ends did not meet in another way."""
    apart = []
    for (producer, consumer), reason in plan.rejected.items():
        left, right = plan.group_of.get(producer), plan.group_of.get(consumer)
        if left is not None and right is not None and left is not right:
            apart.append((producer, consumer, reason))
    return apart


def _candidate(node: Node) -> bool:
    if node.op != "call_function" or is_view(node):
        return False
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return False
    return (is_scalar_rule(node) and node.target is not operator.getitem) or (
        reduction_of(node) is not None
    )


def _probe_all(plan: Plan) -> None:
    for node in plan.graph.graph.nodes:
        if not _candidate(node):
            continue
        try:
            if is_mutation(node):
                _check_mutation(node)
            plan.facts[node]
            plan.accesses[node] = probe(node, plan.facts, f"n{len(plan.accesses)}_")
        except (CannotLower, CannotFuse) as reason:
            plan.ctx.note("not-lowered", node=node.name, op=str(node.target), reason=str(reason))


def _check_mutation(node: Node) -> None:
    if args_of(node)[0].op != "placeholder":
        raise CannotLower("a write into something that is no input")


def _must_be_stored(plan: Plan, node: Node) -> bool:
    """Whether something other than a kernel reads the node."""
    return any(user not in plan.accesses for user in consumers(plan, node))


def _inline_scalars(plan: Plan) -> None:
    """Creations, and values made from single values in memory, are computed where they are read."""
    for node, access in list(plan.accesses.items()):
        if access.operand is not None or is_mutation(node):
            continue
        if access.cost > 12 or any(_is_gather(plan, p) for _, p in access.reads):
            continue
        if not access.reads or (
            not access.axes
            and all(r not in plan.accesses or r in plan.inlined for r, _ in access.reads)
            and not _reads_mutated(plan, access.reads)
        ):
            plan.inlined[node] = access


def _reads_mutated(plan: Plan, reads: Iterable[tuple[Node, Position]]) -> bool:
    """Whether one of the reads is of memory that the graph writes: it must not move down."""
    return any(root(read) in plan.mutated for read, _ in reads)


def _is_gather(plan: Plan, position: Position) -> bool:
    return any(name[0] == "v" for index in position for name in index.names())


def _start_groups(plan: Plan) -> None:
    for node, access in plan.accesses.items():
        if node in plan.inlined and not _must_be_stored(plan, node):
            continue
        if not plan.ctx.allow("fuse-node", node):
            continue
        group = Group(
            id=plan.order[node],
            nodes=[node],
            axes=dict(access.axes),
            labels={},
            positions={node: access.position},
            operands={} if access.operand is None else {node: access.operand},
            reads={node: _expand_inlined(plan, access.reads)},
            cost=access.cost,
        )
        orient(plan, group, node, access)
        plan.groups[group.id] = group
        plan.group_of[node] = group


def _expand_inlined(
    plan: Plan, reads: tuple[tuple[Node, Position], ...]
) -> tuple[tuple[Node, Position], ...]:
    """Reads with inlined nodes replaced by what those read (single values: at no position)."""
    result: list[tuple[Node, Position]] = []
    for node, position in reads:
        if node not in plan.inlined:
            result.append((node, position))
            continue
        result.extend(_expand_inlined(plan, plan.inlined[node].reads))
    return tuple(result)


def _paths(plan: Plan) -> Paths:
    """Over data, from reads to the write that they precede, and from collective to collective."""
    # By node: itself, or what it reads through nodes that are never in between.
    behind: dict[Node, dict[Node, None]] = {}
    before: dict[Node, dict[Node, None]] = {}
    readers: dict[Node, list[Node]] = {}
    last_collective: list[Node] = []
    for node in plan.graph.graph.nodes:
        inputs = list(node.all_input_nodes)
        if communicates(node.target):
            inputs += last_collective
            last_collective = [node]
        if is_mutation(node):
            inputs += readers.get(root(args_of(node)[0]), [])
        if node.op == "call_function":
            for source in node.all_input_nodes:
                readers.setdefault(root(source), []).append(node)
        sources = {found: None for source in inputs for found in behind[source]}
        if _is_never_between(plan, node):
            behind[node] = sources
        else:
            behind[node] = {node: None}
            before[node] = sources
    return Paths(before)


def _is_never_between(plan: Plan, node: Node) -> bool:
    """Views, the tuples of a reduction, and what is computed where it is read."""
    return is_view(node) or is_split(node) or is_tuple_reduction(node) or never_stored(plan, node)


def _bytes(node: Node) -> int:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return 0
    total = value.element_size()
    for size in value.shape:
        hint = size if isinstance(size, int) else getattr(size.node, "hint", None)
        total *= 64 if hint is None else int(hint)
    return total


def _candidates(plan: Plan) -> list[tuple[int, int, int, Node, Node]]:
    """(-bytes, order, order, producer or first reader, consumer) of every edge worth trying."""
    found: list[tuple[int, int, int, Node, Node]] = []
    readers: dict[Node, list[Node]] = {}
    for node, group in plan.group_of.items():
        for read, _ in group.reads[node]:
            if read in plan.group_of and not _at_other_times(read, node):
                pair = (-_bytes(read), plan.order[read], plan.order[node], read, node)
                found.append(pair)
            if read is not node and node not in readers.setdefault(read, []):
                readers[read].append(node)
    for read, nodes in readers.items():
        if read.op == "get_attr":
            continue
        size = _bytes(read)
        if size < 1024:
            continue
        for first, second in itertools.pairwise(nodes):
            if first.meta.get("segment") != second.meta.get("segment"):
                continue  # one of them would run long before its results are needed
            # Sharing a read saves half of what not writing and reading again saves.
            found.append((-(size // 2), plan.order[first], plan.order[second], first, second))
    found.sort(key=lambda item: item[:3])
    return found


def _at_other_times(producer: Node, consumer: Node) -> bool:
    """Whether one is a copy that backward makes for another segment than the other works on."""
    copy = "recomputed_for" in producer.meta or "recomputed_for" in consumer.meta
    return copy and producer.meta.get("segment") != consumer.meta.get("segment")


def _merge_all(plan: Plan, paths: Paths, max_nodes: int, max_buffers: int) -> None:
    pending = _candidates(plan)
    for _ in range(4):
        failed: list[tuple[int, int, int, Node, Node]] = []
        progress = False
        for item in pending:
            first, second = item[3], item[4]
            left, right = plan.group_of[first], plan.group_of[second]
            if left is right:
                continue
            try:
                _merge_pair(plan, paths, left, right, max_nodes, max_buffers)
                progress = True
                plan.rejected.pop((first, second), None)
            except (Reject, CannotFuse) as reason:
                plan.rejected[(first, second)] = str(reason)
                failed.append(item)
        pending = failed
        if not progress or not pending:
            return


def _merge_pair(
    plan: Plan, paths: Paths, left: Group, right: Group, max_nodes: int, max_buffers: int
) -> None:
    if len(left.nodes) + len(right.nodes) > max_nodes:
        raise Reject(f"a kernel has at most {max_nodes} nodes")
    if stands_alone(plan, left) or stands_alone(plan, right):
        raise Reject("a sum has a kernel of its own, so that its order is its own")
    if paths.leave(left.nodes[0], right.nodes[0]):
        raise Reject("a path between them leaves the kernel")
    if paths.comes_after(left.nodes[0], right.nodes[0]):
        left, right = right, left
    pairs = _identify(left, right)
    merged, shifted = merge(left, right, pairs, plan.order)
    if _buffer_count(plan, merged) > max_buffers:
        raise Reject(f"a kernel has at most {max_buffers} buffers")
    if shifted:
        _check_shifted(plan, merged)
    if plan.keeps_order:
        sum_order(plan, merged)
    if not plan.ctx.allow("fuse-edge", right.nodes[0]):
        raise Reject("the limit of rewrites, or the user, forbids it")
    paths.merge(left.nodes[0], right.nodes[0])
    _adopt(plan, left, right, merged)


def _identify(left: Group, right: Group) -> list[tuple[Position, Position]]:
    pairs = [(left.positions[read], position) for _, read, position in cross_reads(right, left)]
    if pairs:
        full = [pair for pair in pairs if any(index.names() for index in pair[0])]
        return full[:4]
    shared: dict[Node, Position] = {}
    for reads in left.reads.values():
        for read, position in reads:
            shared.setdefault(read, position)
    for reads in right.reads.values():
        for read, position in reads:
            if read in shared and any(index.names() for index in position):
                pairs.append((shared[read], position))
    if not pairs:
        raise Reject("they share nothing")
    pairs.sort(key=lambda pair: -len([i for i in pair[0] if i.names()]))
    return pairs[:1]


def _buffer_count(plan: Plan, group: Group) -> int:
    outside = {read for reads in group.reads.values() for read, _ in reads} - set(group.positions)
    return len(outside) + sum(needed_outside(plan, group, node) for node in group.nodes)


def _check_shifted(plan: Plan, group: Group) -> None:
    """Values read elsewhere than at their own position are computed again: allow what is cheap."""
    extra = 0.0
    for node in group.nodes:
        for read, position in group.reads[node]:
            if read in group.positions and position != group.positions[read]:
                extra += plan.accesses[read].cost
    if extra > 24:
        raise Reject("too much would be computed twice")
    build_kernel(plan, group, "trial")


def _adopt(plan: Plan, left: Group, right: Group, merged: Group) -> None:
    merged.id = min(left.id, right.id)
    del plan.groups[left.id], plan.groups[right.id]
    plan.groups[merged.id] = merged
    for node in merged.nodes:
        plan.group_of[node] = merged


def _dissolve(plan: Plan, max_nodes: int) -> None:
    """Compute cheap pointwise groups again in each reader when that saves storing them."""
    for group in sorted(plan.groups.values(), key=lambda g: -g.id):
        if not _dissolvable(plan, group):
            continue
        readers = {
            plan.group_of[user].id: plan.group_of[user]
            for node in group.nodes
            for user in consumers(plan, node)
            if user in plan.group_of and plan.group_of[user] is not group
        }
        largest = max((len(reader.nodes) for reader in readers.values()), default=0)
        if largest + len(group.nodes) > max_nodes:
            continue
        for node in group.nodes:
            plan.inlined[node] = plan.accesses[node]
            del plan.group_of[node]
        del plan.groups[group.id]
        try:
            for reader in readers.values():
                build_kernel(plan, reader, "trial")
            if not plan.ctx.allow("inline-group", group.nodes[0]):
                raise CannotFuse("the limit of rewrites, or the user, forbids it")
        except CannotFuse as reason:
            for node in group.nodes:
                del plan.inlined[node]
                plan.group_of[node] = group
            plan.groups[group.id] = group
            plan.ctx.note("inline-rejected", node=group.nodes[0].name, reason=str(reason))


def _dissolvable(plan: Plan, group: Group) -> bool:
    if group.has_reduction or any(is_mutation(node) for node in group.nodes):
        return False
    uses, largest = 0, max(_bytes(node) for node in group.nodes)
    for node in group.nodes:
        for user in consumers(plan, node):
            if user not in plan.group_of:
                return False
            if plan.group_of[user] is group:
                continue
            if user in plan.inlined:
                return False
            uses += 1
            reader = plan.group_of[user]
            if stands_alone(plan, reader):
                return False
            if max(_bytes(other) for other in reader.nodes) > 4 * largest and group.cost > 2:
                return False
    if any(_reads_mutated(plan, reads) for reads in group.reads.values()):
        return False
    outside = {read for reads in group.reads.values() for read, _ in reads} - set(group.positions)
    loaded = sum(_bytes(read) for read in outside)
    stored = sum(_bytes(node) for node in group.nodes if needed_outside(plan, group, node))
    gathers = any(_is_gather(plan, p) for reads in group.reads.values() for _, p in reads)
    return not gathers and group.cost * max(uses, 1) <= 16 and loaded * uses <= loaded + 2 * stored
