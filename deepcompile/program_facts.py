"""Facts of a program for its run directory: what each step moves and computes, and the memory held.

Nothing is measured: bytes are counted, seconds come from the cost model, memory is simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from .codegen.arena_plan import span
from .codegen.cpp_program import CppProgram, prelude
from .codegen.cpp_table import table_support
from .codegen.size_hints import size_hints
from .codegen.steps import (
    ExternStep,
    KernelStep,
    Layout,
    LifetimeStep,
    ProgramSpec,
    Step,
    TableStep,
    TensorRef,
    TransposeStep,
    tensor_refs,
    touched,
)
from .codegen.timeline import ARENA, SCRATCH, Timeline, timeline
from .codegen.triton_kernel import TritonKernel
from .codegen.triton_table import TritonTable
from .cost.flops import TYPICAL_EXTENT, flops_of
from .cost.rates import Rates
from .ir.interpret import TORCH_DTYPES
from .ir.origins import origin_of
from .ir.traffic import Traffic, traffic

MOST_OWNERS = 200
"""Storages that are named of those that are there at the peak; the rest are counted together."""
_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
Sizes = Mapping[str, int]


def sizes_of(graph: GraphModule, spec: ProgramSpec) -> dict[str, int]:
    """A value for each size of a program: as traced, or `TYPICAL_EXTENT` where that is not said."""
    return dict.fromkeys(spec.sizes, TYPICAL_EXTENT) | size_hints(graph)


def kernel_facts(step: KernelStep | TableStep, sizes: Sizes, rates: Rates) -> dict[str, Any]:
    """Bytes, scalar operations and modelled seconds of one run of a kernel, all rows of a table."""
    cost = _kernel_traffic(step, sizes)
    return {
        "bytes_read": cost.bytes_read,
        "bytes_written": cost.bytes_written,
        "operations": cost.operations,
        "seconds": rates.seconds(cost.bytes_moved, cost.operations),
        "sizes": {name: sizes[name] for name in step.op.nest.sizes if name in sizes},
    }


def launch_facts(
    step: KernelStep | TableStep,
    spec: ProgramSpec,
    sizes: Sizes,
    code: CppProgram | TritonKernel | TritonTable | str,
    flags: str = "",
) -> dict[str, Any]:
    """What calls the function of a kernel with memory of its own: for `deepcompile kernels repro`.

    Empty for a kernel that runs as ATen ops.
    """
    if isinstance(code, str):
        return {}
    function = f"k{step.function}"
    if isinstance(step, TableStep):
        facts = {"function": function, "extents": list(step.extents)}
        if isinstance(code, CppProgram):
            return {"kind": "cpp-table", **facts, "flags": flags}
        assert isinstance(code, TritonTable)
        made = [{"name": code.function.name, "warps": code.function.warps}]
        return {"kind": "triton-table", **facts, "block": code.block, "functions": made}
    given = iter(step.given)
    layouts = [
        spec.slots[slot].layout if buffer.role == "out" else next(given).layout
        for buffer, slot in zip(step.op.nest.buffers, step.slots, strict=True)
    ]
    found: dict[str, Any] = {
        "kind": "cpp",
        "function": function,
        "elements": [_span(layout, sizes) for layout in layouts],
    }
    if isinstance(code, CppProgram):
        workspace = int(code.workspace[step.function].evaluate(sizes))
        return found | {"workspace": workspace, "flags": flags}
    assert isinstance(code, TritonKernel)
    own = {name: sizes[name] for name in step.sizes}
    rows = code.rows(own)
    return found | {
        "kind": "triton",
        "functions": [
            {
                "name": made.name,
                "programs": code.programs(made, own),
                "arguments": list(made.signature),
                "warps": made.warps,
                "stages": made.stages,
            }
            for made in code.functions
        ],
        "rows": rows,
        "workspaces": [
            {
                "name": space.name,
                "dtype": space.dtype,
                "elements": max(1, rows * int(space.columns.evaluate(own))),
            }
            for space in code.workspaces
        ],
    }


@lru_cache(maxsize=2)
def support_files(is_cpp: bool) -> dict[str, str]:
    """What generated code needs beside itself, by the name of the file."""
    if is_cpp:
        return {"prelude.h": prelude(), "table.h": table_support()}
    names = ("deepcompile.codegen.triton_library", "deepcompile.runtime.triton_interpreter")
    files = [Path(spec.origin) for name in names if (spec := find_spec(name)) and spec.origin]
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def program_facts(
    graph: GraphModule,
    spec: ProgramSpec,
    sizes: Sizes,
    rates: Rates,
    kernels: Mapping[int, tuple[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """A program as the run directory keeps it, but for its name.

    Args:
        graph: that it was made of.
        kernels: by step, the name in the run directory and the facts of a kernel.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    steps = []
    for number, step in enumerate(spec.steps):
        if isinstance(step, LifetimeStep):
            continue
        if number in kernels:
            kept, facts = kernels[number]
            assert isinstance(step, KernelStep | TableStep)
            fact: dict[str, Any] = {"kind": "kernel", "name": step.op.nest.name, "kernel": kept}
            fact |= {name: facts[name] for name in _COST}
        else:
            fact = _extern_facts(step, spec, nodes, sizes, rates)
        steps.append({"step": number, **fact})
    return {
        "sizes": dict(sizes),
        "rates": {
            "name": rates.name,
            "bandwidth": rates.bandwidth,
            "flops": dict(rates.flops),
            "launch": rates.launch,
            "source": rates.source,
        },
        "steps": steps,
        "memory": _memory(timeline(spec, sizes), _labels(spec, graph)),
    }


_COST = ("bytes_read", "bytes_written", "operations", "seconds")


def _kernel_traffic(step: KernelStep | TableStep, sizes: Sizes) -> Traffic:
    nest = step.op.nest
    if not isinstance(step, TableStep):
        return traffic(nest, sizes)
    found = [traffic(nest, dict.fromkeys(nest.sizes, extent)) for extent in step.extents]
    return Traffic(
        sum(cost.bytes_read for cost in found),
        sum(cost.bytes_written for cost in found),
        sum(cost.operations for cost in found),
    )


def _extern_facts(
    step: Step, spec: ProgramSpec, nodes: Mapping[str, Any], sizes: Sizes, rates: Rates
) -> dict[str, Any]:
    """Of a call of ATen, or of a transposition."""
    if isinstance(step, TransposeStep):
        count = int(step.rows.evaluate(sizes)) * int(step.columns.evaluate(sizes))
        moved = count * spec.slots[step.target].layout.dtype.itemsize
        fact: dict[str, Any] = {"kind": "extern", "name": "transpose", "op": "transpose"}
        return fact | _cost(moved, moved, 0, "f32", rates)
    assert isinstance(step, ExternStep)
    node = nodes.get(step.name)
    read = [ref.layout for ref in tensor_refs((step.args, dict(step.kwargs)))]
    written = list(step.layouts.values())
    if not written and step.out is not None:
        written = [spec.slots[step.out].layout]
    dtype = next((_DTYPES.get(layout.dtype, "f32") for layout in (*written, *read)), "f32")
    both = [sum(_bytes(layout, sizes) for layout in each) for each in (read, written)]
    fact = {
        "kind": "extern",
        "name": step.name,
        "op": str(step.target if node is None else node.target),
        "origin": None if node is None else origin_of(node),
    }
    flops = 0 if node is None else flops_of(node)
    return fact | _cost(both[0], both[1], flops, dtype, rates)


def _cost(read: int, written: int, operations: float, dtype: str, rates: Rates) -> dict[str, Any]:
    seconds = rates.seconds(read + written, operations, dtype)
    return dict(zip(_COST, (read, written, operations, seconds), strict=True))


def _memory(found: Timeline, labels: Mapping[int, str]) -> dict[str, Any]:
    """Bytes by step, before the first and behind the last too, and whose they are at the peak."""
    owners = found.owners(found.peak_step)
    return {
        "live": [found.live(step) for step in range(-1, found.steps + 1)],
        "peak_step": found.peak_step,
        "owners": [
            {
                "tensor": labels.get(owner.slot, ""),
                "role": owner.role,
                "nbytes": owner.nbytes,
                "first": owner.first,
                "last": owner.last,
            }
            for owner in owners[:MOST_OWNERS]
        ],
        "others": sum(owner.nbytes for owner in owners[MOST_OWNERS:]),
    }


def _labels(spec: ProgramSpec, graph: GraphModule) -> dict[int, str]:
    """A name for each slot: of the input, or of the step that makes it."""
    found = {ARENA: "small intermediates", SCRATCH: "inside of a call"}
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    for name, ref in zip(names, spec.inputs, strict=True):
        if isinstance(ref, TensorRef):
            found[ref.slot] = name
    for step in spec.steps:
        if isinstance(step, KernelStep | TableStep):
            name = step.op.nest.name
        else:
            name = step.name if isinstance(step, ExternStep) else "transpose"
        for slot in touched(step):
            found.setdefault(slot, name)
    return found


def _span(layout: Layout, sizes: Sizes) -> int:
    return span(*_concrete(layout, sizes))


def _bytes(layout: Layout, sizes: Sizes) -> int:
    """Of distinct elements: one that is expanded counts once."""
    shape, strides = _concrete(layout, sizes)
    each = prod(n for n, stride in zip(shape, strides, strict=True) if stride or not n)
    return each * layout.dtype.itemsize


def _concrete(layout: Layout, sizes: Sizes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (
        tuple(int(size.evaluate(sizes)) for size in layout.shape),
        tuple(int(stride.evaluate(sizes)) for stride in layout.strides),
    )
