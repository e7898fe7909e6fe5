"""Finding updates: parts of a graph that hang together and only compute element by element.

Two walks over the graph, both linear. The first joins each node with what it reads; what reaches
an op that is not elementwise is joined with `_OUTSIDE`. The second writes down what each part does
in a form that is equal for equal parts: ops, numbers, and which earlier value of the part is read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from ..lowering.rules import MULTIPLY_ADD, has_scalar_rule

aten = torch.ops.aten
prims = torch.ops.prims

_OUTSIDE = 0
_AS_THEIR_SOURCE = frozenset(  # results of the shape of the first argument, whatever that is
    (
        aten._to_copy.default,
        prims.convert_element_type.default,
        aten.clone.default,
        aten.full_like.default,
    )
)
_SAME_MEMORY = frozenset((aten.alias.default, aten.detach.default))


@dataclass
class Chain:
    """One update.

    Attributes:
        calls: its nodes but the placeholders, in the order of the graph.
        values: what it computes from or computes, in order of first use or making.
        columns: the placeholders among `values`, in that order.
        shared: the single values from outside that it reads, by what they are.
        copies: those of `calls` that write into a column.
        key: equal for updates that do the same.
    """

    calls: list[Node] = field(default_factory=list)
    values: dict[Node, int] = field(default_factory=dict)
    columns: list[Node] = field(default_factory=list)
    shared: dict[int, int] = field(default_factory=dict)
    copies: list[Node] = field(default_factory=list)
    key: list[Any] = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)
    fits: bool = True


@functools.cache
def is_elementwise(target: Any) -> bool:
    """Whether each element of the result depends on the same elements of the operands only."""
    if target in _AS_THEIR_SOURCE or target in _SAME_MEMORY:
        return True
    if target is aten.copy_.default or target is aten.expand.default:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
        return False
    pointwise = torch.Tag.pointwise in target.tags or str(target) == MULTIPLY_ADD
    return pointwise and has_scalar_rule(target)


def _is_single_constant(node: Node) -> bool:
    if node.target is aten.scalar_tensor.default:
        return True
    return node.target is aten.full.default and node.args[0] == []


def find_chains(graph: Graph) -> tuple[list[Chain], dict[Node, int]]:
    """The updates of a graph, and the single values that all may share: equal ones by one number"""
    nodes = list(graph.nodes)
    copy = aten.copy_.default
    mutated = {node.args[0] for node in nodes if node.target is copy}
    if len(mutated) < 2:
        return [], {}
    parent, part, uniform = _join(nodes, mutated)
    roots = [_root(parent, number) for number in range(len(parent))]
    chains: dict[int, Chain] = {}
    for node, number in part.items():
        root = roots[number]
        if root == _OUTSIDE or node.op != "call_function":
            continue
        chain = chains.get(root)
        if chain is None:
            chain = chains[root] = Chain()
        _write_down(chain, node, uniform)
    for chain in chains.values():
        _write_down_copies(chain, uniform)
    for node in nodes[-1].all_input_nodes:
        if node.op == "call_function" and (returning := chains.get(roots[part.get(node, 0)])):
            _return(returning, node)
    found = [chain for chain in chains.values() if _fits(chain, mutated)]
    return found, uniform


def _join(
    nodes: list[Node], mutated: set[Any]
) -> tuple[list[int], dict[Node, int], dict[Node, int]]:
    parent = [_OUTSIDE]
    part: dict[Node, int] = {}
    uniform: dict[Node, int] = {}
    numbers: dict[Any, int] = {}
    known: dict[int, bool] = {}  # by identity: ops hash in Python
    for node in nodes:
        kind = node.op
        if kind == "placeholder":
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                part[node] = _OUTSIDE
            elif node not in mutated and value.dim() == 0:
                uniform[node] = numbers.setdefault(node, len(numbers))
            else:
                part[node] = len(parent)
                parent.append(len(parent))
            continue
        if kind == "output":
            continue
        sources = [source for source in node.all_input_nodes if source not in uniform]
        target = node.target
        elementwise = known.get(id(target))
        if elementwise is None:
            elementwise = known[id(target)] = kind == "call_function" and is_elementwise(target)
        if not sources:
            if kind == "call_function" and (
                _is_single_constant(node) or (elementwise and target is not aten.expand.default)
            ):
                uniform[node] = numbers.setdefault(_meaning(node, uniform), len(numbers))
            else:
                part[node] = _OUTSIDE
            continue
        parts = {part[source] for source in sources}
        if not elementwise:
            parts.add(_OUTSIDE)
        part[node] = parts.pop() if len(parts) == 1 else _merge(parent, parts)
    return parent, part, uniform


def _meaning(node: Node, uniform: dict[Node, int]) -> Any:
    """What is equal for nodes that compute the same from the same single values."""
    arguments = [
        uniform[argument] if isinstance(argument, Node) else (type(argument), repr(argument))
        for argument in node.args
    ]
    return (node.target, *arguments, repr(node.kwargs))


def _merge(parent: list[int], parts: set[int]) -> int:
    """Join parts; the least number stands for all, so `_OUTSIDE` for whatever touches it."""
    roots = {_root(parent, number) for number in parts}
    least = min(roots)
    for root in roots:
        parent[root] = least
    return least


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _write_down(chain: Chain, node: Node, uniform: dict[Node, int]) -> None:
    target, values, key = node.target, chain.values, chain.key
    if target is aten.copy_.default:
        chain.calls.append(node)
        chain.copies.append(node)
        return
    if chain.copies:  # reads after writes would have to keep their order
        chain.fits = False
    key.append(id(target))
    arguments: Iterable[Any] = node.args
    if target is aten.expand.default:
        chain.sizes.append((node.args[0], node.args[1]))
        arguments = node.args[:1]
    for argument in arguments:
        kind = type(argument)
        if kind is Node:
            number = values.get(argument)
            if number is None:
                number = _first_use(chain, argument, uniform)
            key.append(number)
        elif kind is float:
            key.append(repr(argument))
        else:
            key.append(kind)
            key.append(argument if kind is int or kind is bool else repr(argument))
    if node.kwargs:
        for name, argument in node.kwargs.items():
            if isinstance(argument, Node):
                chain.fits = False
            key.append(name)
            key.append(repr(argument))
    values[node] = len(values)
    chain.calls.append(node)


def _write_down_copies(chain: Chain, uniform: dict[Node, int]) -> None:
    """The writes at the end, in the order of what is written: theirs follows from the inputs'."""
    values = chain.values
    last = len(values)
    targets = {node.args[0] for node in chain.copies}
    if any(node.args[1] in targets for node in chain.copies):
        chain.fits = False
    for node in sorted(chain.copies, key=lambda copy: values.get(copy.args[1], last)):  # type: ignore[arg-type,call-overload]
        if node.users or len(node.args) != 2 or node.kwargs:
            chain.fits = False
        chain.key.append(id(node.target))
        for argument in reversed(node.args):
            if not isinstance(argument, Node):
                chain.fits = False
                return
            number = values.get(argument)
            chain.key.append(_first_use(chain, argument, uniform) if number is None else number)


def _first_use(chain: Chain, node: Node, uniform: dict[Node, int]) -> int:
    """The number of a value that the update did not compute: from -1 down for shared ones."""
    known = uniform.get(node)
    if known is not None:
        chain.key.append(("shared", known))
        return chain.shared.setdefault(known, -1 - len(chain.shared))
    number = chain.values[node] = len(chain.values)
    chain.columns.append(node)
    value = node.meta["val"]
    chain.key.append((value.dtype, value.device, value.dim() > 0))
    return number


def _return(chain: Chain, node: Node) -> None:
    """Take note that the graph returns a value of the update."""
    if node.target in _SAME_MEMORY or node.target in (aten.expand.default, aten.copy_.default):
        chain.fits = False
    chain.key.append(("returned", chain.values[node]))


def returned(chain: Chain) -> list[Node]:
    """The values of an update that the graph returns, in the order of the graph's outputs."""
    by_number = list(chain.values)
    return [
        by_number[entry[1]]
        for entry in chain.key
        if type(entry) is tuple and entry[0] == "returned"
    ]


def _fits(chain: Chain, mutated: set[Any]) -> bool:
    """Whether the tensors of an update have one dense layout, and something is written."""
    if not chain.fits or not any(node in mutated for node in chain.columns):
        return False
    layout: tuple[Any, Any] | None = None
    for node in chain.columns:
        value = node.meta["val"]
        if not value.dim():
            continue
        if value.layout is not torch.strided:
            return False
        mine = tuple(value.shape), value.stride()
        if layout is None:
            if not _is_dense(value):
                return False
            layout = mine
        elif mine != layout:
            return False
    return all(
        layout is not None and tuple(size) == layout[0] and source.meta["val"].dim() == len(size)
        for source, size in chain.sizes
    ) and all(_same_layout(node, layout) for node in returned(chain))


def _same_layout(node: Node, layout: tuple[Any, Any] | None) -> bool:
    value = node.meta["val"]
    return value.dim() == 0 or (tuple(value.shape), value.stride()) == layout


def _is_dense(value: torch.Tensor) -> bool:
    """Whether the tensor's elements fill a block of memory, each at its own place."""
    if any(not isinstance(size, int) for size in value.shape):
        return False
    if value.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
