"""What is known of a kernel or library call for a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from deepcompile.cache_dir import cache_dir
from deepcompile.codegen.steps import ExternStep, KernelStep, TableStep
from deepcompile.codegen.triton_build import DeviceCode, compile_function
from deepcompile.codegen.triton_kernel import TritonKernel, emit_triton
from deepcompile.codegen.triton_program import TritonProgram
from deepcompile.codegen.triton_schedule import leaner
from deepcompile.codegen.triton_table import TritonTable
from deepcompile.cost.gpus import GpuFacts, estimate
from deepcompile.ir.nest_text import print_kernel
from deepcompile.ir.origins import origin_of
from deepcompile.ir.traffic import traffic
from deepcompile.recording import CompiledGraph
from deepcompile.runtime.triton_modules import load_source

#: What the CPU graph calls, by what the same model calls on a GPU.
_ON_GPU = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": (
        "aten._scaled_dot_product_flash_attention.default"
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": (
        "aten._scaled_dot_product_flash_attention_backward.default"
    ),
}
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}


@dataclass(frozen=True)
class Built:
    """A kernel under the schedule that was taken, and its functions' code."""

    kernel: TritonKernel | TritonTable
    functions: tuple[DeviceCode, ...]

    @property
    def spilled(self) -> int:
        """Bytes of a thread that did not fit its registers, of the worst function."""
        return max(function.spilled for function in self.functions)


@dataclass(frozen=True)
class Kernel:
    """One call of a generated kernel.

    Attributes:
        name: `graph.kernel`, unique in the run.
        ops, lines: the ATen ops it was made of, and the user's lines.
        bytes_moved: each input and output once.
        seconds: the estimate for one run.
        registers, spilled, shared: of the hungriest of its functions, in bytes but for registers.
        distinct: False when an earlier kernel has the same code.
        error: why it runs as ATen ops, or None.
        files: what the run directory keeps of it.
    """

    name: str
    ops: tuple[str, ...]
    lines: tuple[str, ...]
    bytes_moved: int
    seconds: float
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    distinct: bool = True
    error: str | None = None
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    def meta(self) -> dict[str, Any]:
        """The facts as JSON can hold them; `origins` is what readers of a run look for."""
        facts = {name: value for name, value in vars(self).items() if name != "files"}
        return facts | {"origins": list(self.lines)}


@dataclass(frozen=True)
class Extern:
    """One call of a library: its op on the GPU, the user's line, FLOPs, bytes and the estimate."""

    op: str
    line: str | None
    flops: float
    bytes_moved: int
    seconds: float


@dataclass(frozen=True)
class CrossCompiled:
    """A model compiled for a GPU that is not there."""

    gpu: GpuFacts
    kernels: tuple[Kernel, ...]
    externs: tuple[Extern, ...]
    fallbacks: tuple[tuple[str, str], ...]

    @property
    def seconds(self) -> float:
        """The estimate for all kernels and calls, one after another."""
        return sum(k.seconds for k in self.kernels) + sum(e.seconds for e in self.externs)

    def to_dict(self) -> dict[str, Any]:
        """All facts as JSON can hold them."""
        return {
            "target": f"cuda:{self.gpu.capability}",
            "gpu": self.gpu.name,
            "seconds": self.seconds,
            "kernels": [kernel.meta() for kernel in self.kernels],
            "externs": [vars(extern) for extern in self.externs],
            "fallbacks": [{"graph": graph, "reason": why} for graph, why in self.fallbacks],
        }


def kernel_facts(
    compiled: CompiledGraph,
    code: TritonProgram,
    sizes: Mapping[str, int],
    gpu: GpuFacts,
    progress: Callable[[str], None],
    made: dict[str, Built | str],
) -> Iterator[Kernel]:
    """The kernels of a graph, each distinct source compiled once; `made` keeps those by source."""
    assert compiled.spec is not None
    steps = [s for s in compiled.spec.steps if isinstance(s, (KernelStep, TableStep))]
    for number, step in enumerate(steps):
        triton = code.kernels[step.function]
        name = f"{compiled.name}.k{number}"
        moved = _bytes_moved(step, sizes)
        facts: dict[str, Any] = {
            "name": name,
            "ops": step.op.origin.ops,
            "lines": step.op.origin.lines,
            "bytes_moved": moved,
            "seconds": estimate(gpu, moved),
        }
        files = {"nest.txt": print_kernel(step.op.nest)}
        if isinstance(triton, str):
            yield Kernel(**facts, error=f"{name} runs as ATen ops: {triton}", files=files)
            continue
        files["source.py"] = triton.source
        distinct = triton.source not in made
        if distinct:
            progress(name)
            made[triton.source] = _build(triton, gpu)
        built = made[triton.source]
        if isinstance(built, str):
            error = f"Triton refused {name}: {built}"
            yield Kernel(**facts, error=error, distinct=distinct, files=files)
            continue
        files["source.py"] = built.kernel.source
        files["kernel.ptx"] = "\n".join(function.ptx for function in built.functions)
        yield Kernel(
            **facts,
            registers=max(function.registers for function in built.functions),
            spilled=built.spilled,
            shared=max(function.shared for function in built.functions),
            distinct=distinct,
            files=files,
        )


def _bytes_moved(step: KernelStep | TableStep, sizes: Mapping[str, int]) -> int:
    nest = step.op.nest
    if isinstance(step, TableStep):
        rows = (dict.fromkeys(nest.sizes, extent) for extent in step.extents)
        return sum(traffic(nest, known).bytes_moved for known in rows)
    known = {size: sizes[size] for size in step.sizes if size in sizes}
    return traffic(nest, known).bytes_moved


def _build(kernel: TritonKernel | TritonTable, gpu: GpuFacts) -> Built | str:
    """Compile a kernel, with leaner schedules as long as it spills."""
    best: Built | None = None
    while True:
        module = load_source(kernel.source, cache_dir() / "triton")
        functions = (kernel.function,) if isinstance(kernel, TritonTable) else kernel.functions
        try:
            made = tuple(compile_function(module, f, gpu.capability) for f in functions)
        except Exception as error:  # whatever Triton raises, the kernel has ATen ops to run as
            return f"{type(error).__name__}: {error}"
        found = Built(kernel, made)
        if best is None or found.spilled < best.spilled:
            best = found
        schedule = None if isinstance(kernel, TritonTable) else leaner(kernel.schedule)
        if not found.spilled or schedule is None:
            return best
        kernel = emit_triton(kernel.kernel, schedule, functions[0].name)


def extern_facts(compiled: CompiledGraph, graph: GraphModule, gpu: GpuFacts) -> Iterator[Extern]:
    """The library calls of a graph, with FLOPs by torch's own formulas."""
    assert compiled.spec is not None
    nodes = {node.name: node for node in graph.graph.nodes}
    for step in compiled.spec.steps:
        if not isinstance(step, ExternStep) or step.name not in nodes:
            continue
        node = nodes[step.name]
        values = [n.meta.get("val") for n in node.all_input_nodes]
        values += tree_flatten(node.meta.get("val"))[0]
        tensors = [value for value in values if isinstance(value, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors if _concrete(t))
        dtype = next((_DTYPES[t.dtype] for t in tensors if t.dtype in _DTYPES), "f32")
        flops = _flops(node)
        op = str(node.target)
        yield Extern(
            _ON_GPU.get(op, op), origin_of(node), flops, moved, estimate(gpu, moved, flops, dtype)
        )


def _concrete(tensor: Tensor) -> bool:
    return all(isinstance(size, int) for size in tensor.shape)


def _flops(node: Any) -> float:
    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return 0.0
    args, kwargs = torch.fx.node.map_arg(
        (node.args, node.kwargs), lambda source: source.meta.get("val")
    )
    try:
        return float(formula(*args, **kwargs, out_val=node.meta.get("val")))
    except Exception:  # a formula for other arguments than these: only the estimate is poorer
        return 0.0
