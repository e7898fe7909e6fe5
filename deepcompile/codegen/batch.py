"""A batch node as steps: each kernel of its body once, over a table with a line for each row."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from ..ir.batch_op import BatchOp
from ..ir.index import ONE, ZERO, Index
from ..ir.kernel_op import KernelOp
from ..ir.nest import Accumulate, Check, Kernel, Reduce
from ..passes.lowering.shapes import args_of
from .steps import Layout, Slot, Storage, TableStep, TensorRef

GRAIN = 16
"""Rows of a buffer made between two kernels begin at multiples of so many elements."""


class CannotTabulate(Exception):
    """The body of a batch is not made of kernels that can run over a table."""


def tabular_kernels(body: GraphModule) -> list[Node]:
    """The kernel calls of a body, in order.

    Raises:
        CannotTabulate: when the body has anything else that computes.
    """
    found = []
    for node in body.graph.nodes:
        if node.op in ("placeholder", "output") or node.target is operator.getitem:
            continue
        if node.target is torch.ops.aten.sym_size.int:
            continue
        if not isinstance(node.target, KernelOp):
            raise CannotTabulate(f"{node.target} is no kernel")
        _check(node.target.nest)
        found.append(node)
    for result in args_of(_output(body))[0]:
        if result.target is not operator.getitem:
            raise CannotTabulate("a result that no kernel makes")
    return found


def _output(body: GraphModule) -> Node:
    return next(iter(reversed(body.graph.nodes)))


def _check(nest: Kernel) -> None:
    extents = [axis.extent for axis in nest.axes]
    if nest.reduced or len(nest.sizes) > 1:
        raise CannotTabulate("a kernel with other loops than over the elements of a row")
    if extents and extents != [Index.of(name) for name in nest.sizes]:
        raise CannotTabulate("a kernel with another loop than over the elements of a row")
    if any(isinstance(i, (Accumulate, Check, Reduce)) for i in nest.instructions()):
        raise CannotTabulate("a kernel that does more than compute elements")


class _Column:
    """Where each row's tensor is: a slot and an offset in bytes."""

    def __init__(self, slots: Sequence[int], offsets: Sequence[int]) -> None:
        self.slots = slots
        self.offsets = offsets


class Batch:
    """The steps of a batch node and where they leave its results.

    Args:
        op: with a body that has been through fusion.
        shared, columns: the node's arguments.
        layouts: of the results, those of the first row first.
        make_slot: makes a slot of the program.
        function: the number of the function for a kernel called in a certain way.

    Raises:
        CannotTabulate: when the body cannot run over a table.
    """

    def __init__(
        self,
        op: BatchOp,
        shared: Sequence[TensorRef],
        columns: Sequence[Sequence[TensorRef]],
        layouts: Sequence[Layout],
        make_slot: Callable[[Layout, Storage], Slot],
        function: Callable[[KernelOp, str], int],
    ) -> None:
        self.op = op
        self.count = len(columns[0])
        self.extents = _extents(op, columns, self.count)
        self.steps: list[TableStep] = []
        self.results: list[TensorRef] = []
        self._make_slot = make_slot
        self._columns: dict[Node, _Column] = {}
        self._made: dict[Node, list[_Column]] = {}
        kernels = tabular_kernels(op.body)
        returned = list(args_of(_output(op.body))[0])
        given = [node for node in op.body.graph.nodes if node.op == "placeholder"]
        for node, ref in zip(given, shared, strict=False):
            self._columns[node] = _given([ref] * self.count)
        for node, refs in zip(given[len(shared) :], columns, strict=True):
            self._columns[node] = _given(refs)
        self._returned = self._result_slots(returned, layouts)
        for node in kernels:
            self._step(node, node.target, function)  # type: ignore[arg-type]

    def _result_slots(self, returned: list[Node], layouts: Sequence[Layout]) -> dict[Node, _Column]:
        found: dict[Node, _Column] = {}
        slots = [self._make_slot(layout, "arena") for layout in layouts]
        self.results = [TensorRef(slot.number, slot.layout, ZERO, True) for slot in slots]
        for place, node in enumerate(returned):
            numbers = [slot.number for slot in slots[place :: len(returned)]]
            found[node] = _Column(numbers, [0] * self.count)
        return found

    def _step(self, node: Node, op: KernelOp, function: Callable[[KernelOp, str], int]) -> None:
        items = {args_of(user)[1]: user for user in node.users}
        given = iter(args_of(node))
        columns: list[_Column] = []
        made: list[_Column] = []
        for buffer in op.nest.buffers:
            if buffer.role != "out":
                columns.append(self._column(next(given)))
                continue
            layout = _torch_layout(node, len(made))
            item = items.get(len(made))
            known = None if item is None else self._returned.get(item)
            made.append(self._intermediate(*layout) if known is None else known)
            columns.append(made[-1])
        self._made[node] = made
        named = replace(op, nest=replace(op.nest, name=f"{self.op.name}_{op.nest.name}"))
        step = TableStep(
            named,
            function(op, "table"),
            tuple(zip(*(column.slots for column in columns), strict=True)),
            tuple(zip(*(column.offsets for column in columns), strict=True)),
            tuple(self.extents) if op.nest.axes else (1,) * self.count,
        )
        self.steps.append(step)

    def _column(self, node: Node) -> _Column:
        if node.target is operator.getitem:
            source, number = args_of(node)
            return self._made[source][number]
        return self._columns[node]

    def _intermediate(self, flat: bool, dtype: torch.dtype) -> _Column:
        """One slot for what a kernel makes for another one, a piece for each row."""
        sizes = [-(-extent // GRAIN) * GRAIN if flat else 1 for extent in self.extents]
        layout = Layout((Index.of(sum(sizes)),), (ONE,), dtype)
        number = self._make_slot(layout, "arena").number
        offsets, at = [], 0
        for size in sizes:
            offsets.append(at * dtype.itemsize)
            at += size
        return _Column([number] * self.count, offsets)


def _torch_layout(node: Node, number: int) -> tuple[bool, torch.dtype]:
    value = node.meta["val"][number]
    return bool(value.dim()), value.dtype


def _given(refs: Sequence[TensorRef]) -> _Column:
    offsets = []
    for ref in refs:
        if not isinstance(ref, TensorRef) or (offset := ref.offset.constant()) is None:
            raise CannotTabulate("an argument that is no tensor at a known place")
        offsets.append(offset * ref.layout.dtype.itemsize)
    return _Column([ref.slot for ref in refs], offsets)


def _extents(op: BatchOp, columns: Sequence[Sequence[TensorRef]], count: int) -> list[int]:
    """How many elements the tensors of each row have."""
    flat = next((c for c, is_flat in zip(columns, op.flat, strict=True) if is_flat), None)
    if flat is None:
        return [1] * count
    return [_elements(ref.layout) for ref in flat]


def _elements(layout: Layout) -> int:
    total = 1
    for size in layout.shape:
        known = size.constant()
        if known is None:
            raise CannotTabulate("a tensor of symbolic size")
        total *= known
    return total
