"""Writing the fused graph: kernel nodes in place of groups, in an order that respects mutations."""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ...capture.torch_private import graph_module
from ...ir.batch_op import BatchOp
from ...ir.collectives import communicates
from ...ir.index import Index
from ...ir.kernel_op import KernelOp, Origin, OutputSpec
from ...ir.origins import origin_of
from ..lowering.refusals import CannotFuse
from ..lowering.shapes import args_of, size_index
from ..lowering.views import is_view
from .build import Built, build_kernel
from .groups import Group
from .plan import Plan, is_mutation, orient, root


def emit_graph(plan: Plan) -> tuple[GraphModule, int]:
    """The graph with kernels, and how many there are."""
    trials = _Split(plan).until_buildable()
    built = {}
    for number, group in enumerate(sorted(plan.groups.values(), key=lambda g: g.id)):
        name = f"k{number}"
        trial = trials.get(group.id)
        built[group.id] = trial.named(name) if trial else build_kernel(plan, group, name)
    return _Writer(plan, built).write(), len(built)


class _Split:
    """Groups that turn out not to build are taken apart again, with the reason noted."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def until_buildable(self) -> dict[int, Built]:
        """Try every group once; single nodes that fail are left to ATen.

        The kernels by group, unless one was taken apart: then others may have to store more.
        """
        built: dict[int, Built] = {}
        whole = True
        for group in list(self.plan.groups.values()):
            try:
                built[group.id] = build_kernel(self.plan, group, "trial")
            except CannotFuse as reason:
                self._take_apart(group, str(reason))
                whole = False
        return built if whole else {}

    def _take_apart(self, group: Group, reason: str) -> None:
        plan = self.plan
        names = [node.name for node in group.nodes]
        plan.ctx.note("group-split", nodes=names, reason=reason)
        del plan.groups[group.id]
        for node in group.nodes:
            access = plan.accesses[node]
            single = Group(
                id=plan.order[node],
                nodes=[node],
                axes=dict(access.axes),
                labels={},
                positions={node: access.position},
                operands={} if access.operand is None else {node: access.operand},
                reads={node: access.reads},
                cost=access.cost,
            )
            orient(plan, single, node, access)
            plan.groups[single.id] = single
            plan.group_of[node] = single
        for node in group.nodes:
            single = plan.group_of[node]
            try:
                build_kernel(plan, single, "trial")
            except CannotFuse as error:
                plan.ctx.note("not-lowered", node=node.name, op=str(node.target), reason=str(error))
                del plan.groups[single.id], plan.group_of[node], plan.accesses[node]
                plan.inlined.pop(node, None)


class _Writer:
    def __init__(self, plan: Plan, built: dict[int, Built]) -> None:
        self.plan = plan
        self.built = built
        self.graph = Graph()
        self.env: dict[Node, Node] = {}
        self.sizes: dict[str, Node] = {}

    def write(self) -> GraphModule:
        """Emit every unit that the outputs or a mutation need."""
        source = self.plan.graph
        for unit in self._order():
            if isinstance(unit, Group):
                self._write_kernel(unit)
            else:
                self._write_node(unit)
        result = graph_module(source, self.graph, source.__class__.__name__)
        result.meta.update(source.meta)
        return result

    # -- order ----------------------------------------------------------------------------------

    def _unit(self, node: Node) -> Node | Group:
        return self.plan.group_of.get(node, node)

    def _key(self, unit: Node | Group) -> int:
        return unit.id if isinstance(unit, Group) else self.plan.order[unit]

    def _needs(self, unit: Node | Group) -> list[Node]:
        if isinstance(unit, Group):
            return [base for base, role in self.built[unit.id].buffers if role != "out"]
        return list(unit.all_input_nodes)

    def _order(self) -> list[Node | Group]:
        nodes = list(self.plan.graph.graph.nodes)
        wanted: dict[int, Node | Group] = {}
        needs: dict[int, list[Node | Group]] = {}
        stack: list[Node | Group] = [n for n in nodes if n.op in ("placeholder", "output")]
        mutations = [n for n in nodes if is_mutation(n)]
        stack += [self._unit(node) for node in mutations]
        # Whatever else has an effect stays: its place among the other effects is by its number.
        effects = [n for n in nodes if n.op == "call_function" and _has_effect(n)]
        stack += [self._unit(node) for node in effects]
        while stack:
            unit = stack.pop()
            if self._key(unit) in wanted:
                continue
            wanted[self._key(unit)] = unit
            inputs = [self._unit(node) for node in self._needs(unit)]
            needs[self._key(unit)] = inputs
            stack.extend(inputs)
        self._order_mutations(mutations, wanted, needs, root)
        collectives = [node for node in nodes if communicates(node.target)]
        for earlier, later in itertools.pairwise(collectives):
            needs[self._key(later)].append(earlier)
        waiting = {key: len({self._key(i) for i in needs[key]}) for key in wanted}
        users: dict[int, list[int]] = {}
        for key, inputs in needs.items():
            for source in {self._key(i) for i in inputs}:
                users.setdefault(source, []).append(key)
        ready = [key for key, count in waiting.items() if not count]
        heapq.heapify(ready)
        order: list[Node | Group] = []
        while ready:
            key = heapq.heappop(ready)
            order.append(wanted[key])
            for user in users.get(key, []):
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, user)
        if len(order) != len(wanted):
            raise RuntimeError("fuse-rows made a cycle between kernels")
        return order

    def _order_mutations(
        self,
        mutations: list[Node],
        wanted: dict[int, Node | Group],
        needs: dict[int, list[Node | Group]],
        root: Callable[[Node], Node],
    ) -> None:
        """Reads of an input keep their side of its write."""
        readers: dict[Node, dict[int, Node | Group]] = {}
        for key, unit in wanted.items() if mutations else ():
            if isinstance(unit, Node) and (is_view(unit) or unit.op == "output"):
                continue
            for node in self._needs(unit):
                readers.setdefault(root(node), {})[key] = unit
        for mutation in mutations:
            unit, target = self._unit(mutation), root(args_of(mutation)[0])
            for key, other in readers.get(target, {}).items():
                if other is unit:
                    continue
                if self._reads_at(other, target, root) < self.plan.order[mutation]:
                    needs[self._key(unit)].append(other)
                else:
                    needs[key].append(unit)

    def _reads_at(self, unit: Node | Group, target: Node, root: Callable[[Node], Node]) -> int:
        """The place in the graph of the last node of a unit that reads `target`."""
        if isinstance(unit, Node):
            return self.plan.order[unit]
        places = [
            self.plan.order[node]
            for node in unit.nodes
            if any(root(source) is target for source in node.all_input_nodes)
        ]
        return max(places, default=self.plan.order[unit.nodes[0]])

    # -- nodes ----------------------------------------------------------------------------------

    def _write_node(self, node: Node) -> None:
        self.env[node] = self.graph.node_copy(node, self._lookup)

    def _lookup(self, node: Node) -> Node:
        return self.env[node]

    def _write_kernel(self, group: Group) -> None:
        built = self.built[group.id]
        # An input that is only written is passed in like one that is read.
        op = _kernel_op(self.plan, group, built)
        arguments = [
            self.env[base] for base, role in built.buffers if role != "out" or _is_given(base)
        ]
        made = [base for base, role in built.buffers if role == "out" and not _is_given(base)]
        sizes = [self._size(name) for name in op.nest.sizes]
        call = self.graph.call_function(op, (*arguments, *sizes))
        call.meta["val"] = tuple(base.meta["val"] for base in made)
        call.meta["deepcompile_nodes"] = tuple(node.name for node in group.nodes)
        trace = next(
            (n.meta.get("stack_trace") for n in group.nodes if n.meta.get("stack_trace")), None
        )
        if trace:
            call.meta["stack_trace"] = trace
        for number, base in enumerate(made):
            item = self.graph.call_function(operator.getitem, (call, number))
            item.meta["val"] = base.meta["val"]
            if trace:
                item.meta["stack_trace"] = base.meta.get("stack_trace", trace)
            self.env[base] = item
        for node in group.nodes:
            if is_mutation(node):
                self.env[node] = self.env[root(args_of(node)[0])]

    def _size(self, name: str) -> Node:
        known = self.sizes.get(name)
        if known is not None:
            return known
        wanted = Index.of(name)
        for node in self.plan.graph.graph.nodes:
            if node.op != "placeholder":
                continue
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and size_index(value) == wanted:
                self.sizes[name] = self.env[node]
                return self.env[node]
        for node in self.plan.graph.graph.nodes:
            value = node.meta.get("val")
            if node.op != "placeholder" or not isinstance(value, torch.Tensor):
                continue
            for dim, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and size_index(size) == wanted:
                    found = self.graph.call_function(
                        torch.ops.aten.sym_size.int, (self.env[node], dim)
                    )
                    found.meta["val"] = size
                    self.sizes[name] = found
                    return found
        raise CannotFuse(f"size {name} is the size of no input")


def _is_given(node: Node) -> bool:
    return node.op == "placeholder"


def _has_effect(node: Node) -> bool:
    if isinstance(node.target, BatchOp) or communicates(node.target):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and (schema.is_mutable or node.is_impure())


def _kernel_op(plan: Plan, group: Group, built: Built) -> KernelOp:
    nest = built.nest
    buffers = tuple(
        replace(buffer, role="inout") if role == "out" and _is_given(base) else buffer
        for buffer, (base, role) in zip(nest.buffers, built.buffers, strict=True)
    )
    nest = replace(nest, buffers=buffers)
    made = [base for base, role in built.buffers if role == "out" and not _is_given(base)]
    given = [base for base, role in built.buffers if role != "out" or _is_given(base)]
    outputs = tuple(
        OutputSpec(info.shape, info.strides, info.dtype) for info in (plan.facts[n] for n in made)
    )
    nodes = sorted(group.nodes, key=plan.order.__getitem__)
    origin = Origin(tuple(_op_name(node) for node in nodes), _lines(nodes))
    return KernelOp(nest, outputs, origin, _eager(group, given, made, nest.sizes, plan.order))


def _op_name(node: Node) -> str:
    target: Any = node.target
    if target is operator.getitem:
        target = args_of(node)[0].target  # type: ignore[union-attr]
    return str(target).replace("aten.", "", 1)


def _lines(nodes: list[Node]) -> tuple[str, ...]:
    found = dict.fromkeys(origin_of(node) for node in nodes)
    return tuple(line for line in found if line)


def _eager(
    group: Group,
    given: list[Node],
    made: list[Node],
    size_names: tuple[str, ...],
    order: Mapping[Node, int],
) -> Callable[..., tuple[Any, ...]]:
    """The group by ATen: the original nodes, in order, on the kernel's own arguments."""
    needed: dict[Node, None] = {}
    leaves = set(given)

    def collect(node: Node) -> None:
        if node in needed or node in leaves or node.op != "call_function":
            return
        for source in node.all_input_nodes:
            collect(source)
        needed[node] = None

    for node in sorted(group.nodes, key=order.__getitem__):
        collect(node)
    recipe = list(needed)

    def run(*arguments: Any) -> tuple[Any, ...]:
        env: dict[Node, Any] = dict(zip(given, arguments, strict=False))
        sizes = dict(zip(size_names, arguments[len(given) :], strict=False))

        def value(node: Node) -> Any:
            if node in env:
                return env[node]
            meta = node.meta["val"]
            if isinstance(meta, torch.SymInt):
                return size_index(meta).evaluate(sizes)
            raise KeyError(node.name)

        for node in recipe:
            values, keywords = map_arg((args_of(node), node.kwargs), value)
            env[node] = node.target(*values, **keywords)  # type: ignore[operator]
        return tuple(env[node] for node in made)

    return run
