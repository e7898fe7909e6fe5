"""What one compiled graph costs at the sizes it ran with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch.fx import Node

from deepcompile.codegen.steps import (
    ExternStep,
    KernelStep,
    Layout,
    Step,
    TableStep,
    TransposeStep,
    tensor_refs,
)
from deepcompile.explanation.facts import Extern, GraphFacts, KernelFacts
from deepcompile.ir.traffic import traffic
from deepcompile.recording import CompiledGraph

Sizes = Mapping[str, int]


def measure_graph(graph: CompiledGraph) -> GraphFacts:
    """The facts of one graph; bytes are None where it never ran and its sizes are symbolic."""
    sizes, arena = _first_run(graph)
    steps = graph.spec.steps if graph.spec is not None else []
    kernels = [
        _kernel(graph, step, sizes) for step in steps if isinstance(step, (KernelStep, TableStep))
    ]
    eager = _bytes_op_by_op(graph)
    moved = eager if graph.fallback is not None else _bytes_moved(graph, steps, kernels, sizes)
    externs = Counter(op for op, _ in graph.externs)
    return GraphFacts(
        name=graph.name,
        kind=graph.kind,
        fallback=graph.fallback,
        kernels=tuple(kernels),
        externs=tuple(
            Extern(op, count, tuple(dict.fromkeys(o for n, o in graph.externs if n == op and o)))
            for op, count in externs.most_common()
        ),
        bytes_moved=moved,
        bytes_op_by_op=eager,
        arena_bytes=None if arena is None else arena[0],
        arena_bound=None if arena is None else arena[1],
        seconds=dict(graph.seconds),
        cached=graph.cached,
    )


def _first_run(graph: CompiledGraph) -> tuple[Sizes | None, tuple[int, int] | None]:
    """Sizes and arena bytes (planned, lower bound) of the first call."""
    if graph.program is None:
        return None, None
    names = list(graph.program.spec.sizes)
    for key, plan in graph.program.arena_plans.items():
        return dict(zip(names, key, strict=False)), (plan.size, plan.bound)
    return (None if names else {}), None


def _kernel(graph: CompiledGraph, step: KernelStep | TableStep, sizes: Sizes | None) -> KernelFacts:
    nest, origin = step.op.nest, step.op.origin
    read, written = _kernel_bytes(step, sizes)
    return KernelFacts(
        name=f"{graph.name}.{nest.name}",
        ops=origin.ops,
        lines=origin.lines,
        bytes_read=read,
        bytes_written=written,
    )


def _kernel_bytes(
    step: KernelStep | TableStep, sizes: Sizes | None
) -> tuple[int | None, int | None]:
    nest = step.op.nest
    if isinstance(step, TableStep):
        rows = Counter(step.extents)
        costs = [(traffic(nest, dict.fromkeys(nest.sizes, n)), rows[n]) for n in rows]
        return (
            sum(cost.bytes_read * count for cost, count in costs),
            sum(cost.bytes_written * count for cost, count in costs),
        )
    if sizes is None or any(name not in sizes for name in nest.sizes):
        return None, None
    cost = traffic(nest, sizes)
    return cost.bytes_read, cost.bytes_written


def _bytes_moved(
    graph: CompiledGraph, steps: list[Step], kernels: list[KernelFacts], sizes: Sizes | None
) -> int | None:
    if sizes is None or any(kernel.bytes_moved is None for kernel in kernels):
        return None
    total = sum(kernel.bytes_moved or 0 for kernel in kernels)
    for step in steps:
        if isinstance(step, ExternStep):
            read = [ref.layout for ref in tensor_refs((step.args, dict(step.kwargs)))]
            written = list(step.layouts.values())
            if not written and step.out is not None and graph.spec is not None:
                written = [graph.spec.slots[step.out].layout]
            total += sum(_layout_bytes(layout, sizes) for layout in (*read, *written))
        elif isinstance(step, TransposeStep) and graph.spec is not None:
            width = graph.spec.slots[step.target].layout.dtype.itemsize
            count = int(step.rows.evaluate(sizes)) * int(step.columns.evaluate(sizes))
            total += 2 * count * width
    return total


def _layout_bytes(layout: Layout, sizes: Sizes) -> int:
    extents = (int(size.evaluate(sizes)) for size in layout.shape)
    strides = (int(stride.evaluate(sizes)) for stride in layout.strides)
    return _distinct(extents, strides) * layout.dtype.itemsize


def _distinct(shape: Any, strides: Any) -> int:
    """Elements of a tensor, one that is expanded counted once."""
    return prod(n for n, stride in zip(shape, strides, strict=True) if stride or not n)


def _bytes_op_by_op(graph: CompiledGraph) -> int | None:
    """What the ATen ops of the graph before its passes read and write, each by itself."""
    if graph.source is None:
        return None
    total = 0
    for node in graph.source.graph.nodes:
        if node.op != "call_function" or _is_view(node):
            continue
        total += sum(_node_bytes(source) for source in node.all_input_nodes) + _node_bytes(node)
    return total


def _is_view(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # getitem, arithmetic on sizes
    return target.is_view or target is torch.ops.aten._unsafe_view.default


def _node_bytes(node: Node) -> int:
    value = node.meta.get("val")
    return sum(
        _distinct(map(_hint, t.shape), map(_hint, t.stride())) * t.dtype.itemsize
        for t in (value if isinstance(value, list | tuple) else [value])
        if isinstance(t, torch.Tensor) and t.layout is torch.strided
    )


def _hint(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 0
