"""Kernels that write a result over an operand which nothing reads any more.

A pointwise kernel, or the last loop of a row kernel, reads a position before it writes the same
position, and no other point touches it. Where such an operand dies with the kernel, its memory can
become that of a result of the same size: two storages are one, and what the step holds at once is
less by a tensor. Only what the program itself has made is written over: an input may be needed
again, by a second backward or by the user.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, Node

from ..errors import DeepCompileError
from ..ir.batch_op import BatchOp
from ..ir.kernel_op import KernelOp
from ..ir.nest import Buffer, Kernel, Load, Store
from ..ir.verify import verify_kernel
from ..passes.lowering.shapes import args_of
from .layouts import same_extent
from .lifetimes import is_large
from .steps import Layout


class Storages:
    """Which values of a graph are one storage, and which node needs it last.

    Args:
        graph: of kernels and calls of ATen.
        shared: the node whose memory a node's result is, where it makes none of its own.
    """

    def __init__(self, graph: Graph, shared: Callable[[Node], Node | None]) -> None:
        self._base: dict[Node, Node] = {}
        self._last: dict[Node, Node] = {}
        self._returned: set[Node] = set()
        self._lent: set[Node] = set()
        for node in graph.nodes:
            lends = node.op == "call_function" and not _is_ours(node.target)
            for source in node.all_input_nodes:
                base = self._base[source]
                self._last[base] = node
                if node.op == "output":
                    self._returned.add(base)
                if lends:
                    self._lent.add(base)
            source = shared(node)
            self._base[node] = node if source is None else self._base[source]

    def is_returned(self, node: Node) -> bool:
        """Whether the graph hands out the memory of a value."""
        return self._base[node] in self._returned

    def ends_at(self, node: Node, reader: Node) -> bool:
        """Whether `reader` is the last to need the memory of `node`, and gets it only once.

        So it may write over it, if the graph has made it.
        """
        base = self._base[node]
        if self._last[base] is not reader or base in self._lent or not _is_made(base):
            return False
        return sum(self._base[source] is base for source in reader.all_input_nodes) == 1


def _is_made(node: Node) -> bool:
    """Whether a value is new memory of one tensor."""
    source = node.all_input_nodes[0] if node.target is operator.getitem else node
    return _is_ours(source.target) and not isinstance(source.target, BatchOp)


def _is_ours(target: Any) -> bool:
    """Whether a call is done with its arguments when it returns, and keeps no result.

    Others may not be: copies on streams of their own, operators that hand out what they keep.
    """
    if target is operator.getitem or isinstance(target, KernelOp | BatchOp):
        return True
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"


def over_operands(
    node: Node,
    op: KernelOp,
    results: Sequence[Layout],
    starts: Mapping[Node, Layout],
    storages: Storages,
    hints: Mapping[str, int],
) -> tuple[KernelOp, dict[str, str]]:
    """The kernel of a node writing large results over operands that die with it.

    Args:
        results: the layouts of what the node makes.
        starts: the operands that begin where their slot does, with the layout of that slot.
        hints: sizes by example, for what is large.

    Returns:
        The kernel, and the names of results by the names of the operands that they write over.
    """
    taken: dict[str, str] = {}
    buffers = op.nest.buffers
    operands = zip((b for b in buffers if b.role != "out"), args_of(node), strict=False)
    free = [
        (buffer, source)
        for buffer, source in operands
        if buffer.role == "in" and storages.ends_at(source, node)
    ]
    users = {args_of(user)[1]: user for user in node.users}
    made = [buffer for buffer in buffers if buffer.role == "out"]
    for number, (out, layout) in enumerate(zip(made, results, strict=True)):
        if not is_large(layout, hints):
            continue
        returned = number in users and storages.is_returned(users[number])
        for pair in free:
            operand, source = pair
            known = starts.get(source)
            if known is None:
                continue
            # What is handed out must be a storage's one tensor, and no view of it.
            fits = layout == known or (not returned and same_extent(layout, known))
            merged = written_over(op, out, operand) if fits else None
            if merged is not None:
                op = merged
                taken[operand.name] = out.name
                free.remove(pair)
                break
    return op, taken


def written_over(op: KernelOp, out: Buffer, operand: Buffer) -> KernelOp | None:
    """The kernel with one "inout" buffer for a result and an operand.

    None when it reads what it would have overwritten.
    """
    nest = _one_buffer(op.nest, out, operand)
    if nest is None:
        return None
    results = [buffer.name for buffer in op.nest.buffers if buffer.role == "out"]
    given = [buffer.name for buffer in op.nest.buffers if buffer.role != "out"]
    result, place = results.index(out.name), given.index(operand.name)
    outputs = (*op.outputs[:result], *op.outputs[result + 1 :])
    return KernelOp(nest, outputs, op.origin, _writing_over(op, result, place))


def _one_buffer(nest: Kernel, out: Buffer, operand: Buffer) -> Kernel | None:
    if operand.role != "in" or out.dtype != operand.dtype:
        return None
    stores = [i for i in nest.instructions() if isinstance(i, Store) and i.buffer == out.name]
    loads = [i for i in nest.instructions() if isinstance(i, Load) and i.buffer == operand.name]
    if len(stores) != 1 or any(load.index != stores[0].index for load in loads):
        return None
    last = max(at for at, stage in enumerate(nest.stages) if stores[0] in stage.body)
    # What a loop computed may be computed anew, from memory, in a later one.
    if any(stage.kind == "loop" for stage in nest.stages[last + 1 :]):
        return None
    store = replace(stores[0], buffer=operand.name)
    buffers = (
        replace(buffer, role="inout") if buffer is operand else buffer for buffer in nest.buffers
    )
    stages = (
        replace(stage, body=tuple(store if i is stores[0] else i for i in stage.body))
        for stage in nest.stages
    )
    found = replace(
        nest,
        buffers=tuple(buffer for buffer in buffers if buffer.name != out.name),
        stages=tuple(stages),
    )
    try:
        verify_kernel(found)
    except DeepCompileError:
        return None
    return found


def _writing_over(op: KernelOp, result: int, place: int) -> Callable[..., tuple[Any, ...]]:
    """The same by ATen: a result is copied over an operand, as its readers expect it there."""
    spec = op.outputs[result]

    def run(*arguments: Any) -> tuple[Any, ...]:
        made = op.eager(*arguments)
        sizes = op.sizes(arguments)
        shape = [size.evaluate(sizes) for size in spec.shape]
        strides = [stride.evaluate(sizes) for stride in spec.strides]
        arguments[place].as_strided(shape, strides).copy_(made[result])
        return (*made[:result], *made[result + 1 :])

    return run
