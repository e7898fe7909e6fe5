"""Finding updates: parts of a graph that hang together and only compute element by element.

Two walks over the graph, both linear. The first joins each node with what it reads; what reaches
an op that is not elementwise is joined with `_OUTSIDE`. The second writes down what each part does
in a form that is equal for equal parts: ops, numbers, and which earlier value of the part is read.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ..lowering.rules import MULTIPLY_ADD, has_scalar_rule

aten = torch.ops.aten
prims = torch.ops.prims

_OUTSIDE = 0
_COPY = aten.copy_.default
_AS_THEIR_SOURCE = frozenset(  # results of the shape of the first argument, whatever that is
    (
        aten._to_copy.default,
        prims.convert_element_type.default,
        aten.clone.default,
        aten.full_like.default,
    )
)
_SAME_MEMORY = frozenset((aten.alias.default, aten.detach.default))


@dataclass(frozen=True)
class Chain:
    """One update.

    Attributes:
        calls: what it computes, in the order of the graph, then its writes.
        columns: the placeholders that it reads or writes, in order of first use.
        returned: those of `calls` that the graph returns, in the order of the graph's outputs.
        key: equal for updates that do the same.
    """

    calls: list[Node]
    columns: list[Node]
    returned: list[Node]
    key: tuple[Any, ...]


@functools.cache
def is_elementwise(target: Any) -> bool:
    """Whether each element of the result depends on the same elements of the operands only."""
    if target in _AS_THEIR_SOURCE or target in _SAME_MEMORY:
        return True
    if target is _COPY or target is aten.expand.default:
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
    mutated = {node.args[0] for node in nodes if node.target is _COPY}
    if len(mutated) < 2:
        return [], {}
    parent, number_of, uniform = _join(nodes, mutated)
    roots = [_root(parent, number) for number in range(len(parent))]
    calls: list[list[Node]] = [[] for _ in parent]
    returned: list[list[Node]] = [[] for _ in parent]
    for node, number in number_of.items():
        if node.op == "call_function":
            calls[roots[number]].append(node)
    for node in nodes[-1].all_input_nodes:
        if node.op == "call_function":
            returned[roots[number_of.get(node, _OUTSIDE)]].append(node)
    texts: dict[int, str] = {}  # the arguments live as long as the graph

    def meaning(argument: Any) -> str:
        """What is equal for arguments that mean the same: unlike in Python, 1, 1.0, True differ."""
        text = texts.get(id(argument))
        if text is None:
            text = texts[id(argument)] = repr(argument)
        return text

    parts = list(zip(calls, returned, strict=True))
    del parts[_OUTSIDE]
    found = [_chain(*part, uniform, meaning) for part in parts if part[0]]
    return [chain for chain in found if chain is not None], uniform


def _join(
    nodes: list[Node], mutated: set[Any]
) -> tuple[list[int], dict[Node, int], dict[Node, int]]:
    parent = [_OUTSIDE]
    part: dict[Node, int] = {}
    uniform: dict[Node, int] = {}
    numbers: dict[Any, int] = {}
    known: dict[int, bool] = {}  # by identity: ops hash in Python
    for node in nodes:
        kind, target = node.op, node.target
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
        elementwise = known.get(id(target))
        if elementwise is None:
            elementwise = known[id(target)] = kind == "call_function" and is_elementwise(target)
        number = None
        for source in node.all_input_nodes:
            other = part.get(source)
            if other is None or other == number:  # None: a single value
                continue
            number = other if number is None else _merge(parent, number, other)
        if number is not None:
            part[node] = number if elementwise else _merge(parent, number, _OUTSIDE)
        elif kind == "call_function" and (
            _is_single_constant(node) or (elementwise and target is not aten.expand.default)
        ):
            uniform[node] = numbers.setdefault(_meaning(node, uniform), len(numbers))
        else:
            part[node] = _OUTSIDE
    return parent, part, uniform


def _meaning(node: Node, uniform: dict[Node, int]) -> Any:
    """What is equal for nodes that compute the same from the same single values."""
    arguments = [
        uniform[argument] if isinstance(argument, Node) else (type(argument), repr(argument))
        for argument in node.args
    ]
    return (node.target, *arguments, repr(node.kwargs))


def _merge(parent: list[int], left: int, right: int) -> int:
    """Join two parts; the lesser number stands for both, so `_OUTSIDE` for whatever touches it."""
    left, right = _root(parent, left), _root(parent, right)
    least = parent[left] = parent[right] = min(left, right)
    return least


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


class _Numbers(dict[Node, int]):
    """Numbers for what an update reads or computes: from -1 down for what all updates share.

    What it computes comes first, then its columns, in order of first use.
    """

    def __init__(self, computed: Iterable[Node], uniform: dict[Node, int]) -> None:
        super().__init__(zip(computed, itertools.count()))
        self.columns: list[Node] = []
        self._uniform = uniform

    def __missing__(self, node: Node) -> int:
        if node in self._uniform:
            return -1 - self._uniform[node]
        self.columns.append(node)
        return self.setdefault(node, len(self))


def _chain(
    calls: list[Node],
    returned: list[Node],
    uniform: dict[Node, int],
    meaning: Callable[[Any], str],
) -> Chain | None:
    """The update that these nodes are; None if they cannot be one row of several."""
    targets = [node.target for node in calls]
    count = targets.index(_COPY) if _COPY in targets else 0
    copies = calls[count:]
    # Reads after writes would have to keep their order.
    if not count or targets.count(_COPY) != len(copies) or not all(map(_is_plain_copy, copies)):
        return None
    computed = calls[:count]
    numbers = _Numbers(computed, uniform)
    arguments = [node.args for node in computed]
    sizes = []
    if aten.expand.default in targets:
        for place, node in enumerate(computed):
            if node.target is aten.expand.default:
                sizes.append(node.args)
                arguments[place] = node.args[:1]
    key: list[Any] = [*map(id, targets), *map(len, arguments)]  # by identity: ops hash in Python
    key += [
        numbers[argument] if type(argument) is Node else meaning(argument)
        for each in arguments
        for argument in each
    ]
    for place, named in enumerate([node.kwargs for node in computed]):
        if named:
            if any(isinstance(argument, Node) for argument in named.values()):
                return None
            key.append((place, repr(named)))
    # In the order of what is written: that of the graph follows from the order of its inputs.
    written = {node.args[0] for node in copies}
    copies.sort(key=lambda node: numbers.get(node.args[1], len(numbers)))  # type: ignore[arg-type,call-overload]
    for node in copies:
        key += [numbers[argument] for argument in reversed(node.args)]  # type: ignore[index]
        if node.args[1] in written:
            return None
    key += [numbers[node] for node in returned]
    values = [node.meta["val"] for node in numbers.columns]
    key += [(value.dtype, value.device, value.dim() > 0) for value in values]
    if not _share_a_layout(values, sizes, returned):
        return None
    return Chain([*calls[:count], *copies], numbers.columns, returned, tuple(key))


def _is_plain_copy(node: Node) -> bool:
    """Whether the node writes into an input, without options, and nothing reads its result."""
    if node.users or node.kwargs or len(node.args) != 2:
        return False
    written, source = node.args
    return isinstance(written, Node) and written.op == "placeholder" and isinstance(source, Node)


def _share_a_layout(
    values: Sequence[torch.Tensor], sizes: Iterable[Any], returned: Iterable[Node]
) -> bool:
    """Whether the tensors of an update have one dense layout, but for single values.

    Args:
        values: its columns.
        sizes: arguments of its calls of `expand`.
        returned: the nodes that leave it.
    """
    tensors = [value for value in values if value.dim()]
    shape = tensors[0].shape if tensors else None
    stride = tensors[0].stride() if tensors else None
    if any(value.layout is not torch.strided for value in tensors):
        return False
    if tensors and not _is_dense(tensors[0]):
        return False
    for node in returned:
        if node.target in _SAME_MEMORY or node.target is aten.expand.default:
            return False
        value = node.meta["val"]
        if value.dim():
            tensors.append(value)
    return all(value.shape == shape and value.stride() == stride for value in tensors) and all(
        shape == tuple(size) and source.meta["val"].dim() == len(size) for source, size, *_ in sizes
    )


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
