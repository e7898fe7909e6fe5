"""Compiling a model for a GPU that is not there: kernels, PTX, what they use, and an estimate.

The model is traced on fake CPU tensors, forward and, where something needs a gradient, backward;
nothing of it is executed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_map

from deepcompile.backend import _Compiler
from deepcompile.capture.aot import interpret
from deepcompile.capture.fake_models import fake_model, fake_tensor
from deepcompile.codegen.program import make_program
from deepcompile.codegen.size_hints import size_hints
from deepcompile.codegen.triton_program import emit_triton_program
from deepcompile.codegen.triton_schedule import Gpu
from deepcompile.cost.gemm import GemmChoice
from deepcompile.cost.gpus import GpuFacts
from deepcompile.crosscompile.facts import CrossCompiled, Kernel, extern_facts, kernel_facts
from deepcompile.errors import CompileError
from deepcompile.options import Options
from deepcompile.recording import CompiledGraph, Kind

__all__ = ["CrossCompiled", "cross_compile"]


def cross_compile(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    gpu: GpuFacts,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> CrossCompiled:
    """Compile `model`, called with `inputs`, for `gpu`.

    Args:
        model: a module on the CPU or on `meta`, or a function of tensors.
        inputs: its positional inputs; only their shapes and dtypes matter.
        gpu: the target, from `deepcompile.cost.gpus.GPUS`.
        options: as of `torch.compile`; `run_dir` is where kernels and PTX go.
        progress: told the name of each kernel before it is compiled.

    Raises:
        CompileError: when Dynamo cannot capture the model as a whole, or Triton is missing.
    """
    compiler = _CrossCompiler(
        Options.resolve({**(options or {}), "codegen": "triton"}), gpu, progress or _silent
    )
    # Nothing of this trace may meet what the process has compiled for real.
    torch._dynamo.reset()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            fake = fake_model(model, mode)[0] if isinstance(model, nn.Module) else model
            arguments = tree_map(fake_tensor, tuple(inputs))
            function = torch.compile(fake, backend=compiler.backend, fullgraph=True)
            result = function(*arguments)
            outputs = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
            trained = [out.sum() for out in outputs if out.requires_grad]
            if trained:
                torch.stack(trained).sum().backward()
    finally:
        torch._dynamo.reset()
    return CrossCompiled(
        gpu, tuple(compiler.kernels), tuple(compiler.externs), tuple(compiler.fallbacks)
    )


def _silent(name: str) -> None:
    pass


class _CrossCompiler(_Compiler):
    """The compiler of the backend, up to code; graphs then run on fake tensors as they came."""

    def __init__(self, options: Options, gpu: GpuFacts, progress: Callable[[str], None]) -> None:
        super().__init__(options)
        self.gpu = gpu
        self.progress = progress
        self.kernels: list[Kernel] = []
        self.externs: list[Any] = []
        self.fallbacks: list[tuple[str, str]] = []
        self._made: dict[str, Any] = {}

    def backend(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """What `torch.compile` calls."""
        return self.capture(gm, example_inputs)

    def note(self, event: str, /, **fields: Any) -> None:
        super().note(event, **fields)
        if event == "fallback":
            self.fallbacks.append((str(fields.get("graph", "")), str(fields.get("reason", ""))))

    def compile_graph(
        self,
        gm: GraphModule,
        example_inputs: Sequence[Any],
        *,
        kind: Kind,
        static_input_idxs: Sequence[int] = (),
    ) -> Callable[..., Any]:
        super().compile_graph(gm, example_inputs, kind=kind, static_input_idxs=static_input_idxs)
        return interpret(gm)

    def _generate(self, graph: GraphModule, compiled: CompiledGraph) -> Callable[..., Any]:
        compiled.spec = make_program(graph, GemmChoice(onednn=False))
        hints = size_hints(graph)
        device = Gpu(self.gpu.multiprocessors, self.gpu.capability)
        contracts = not self.options.deterministic
        code = emit_triton_program(compiled.spec, hints, device, contracts=contracts)
        for kernel in kernel_facts(compiled, code, hints, self.gpu, self.progress, self._made):
            self.kernels.append(kernel)
            if kernel.error is not None:
                self.note("fallback", graph=compiled.name, reason=kernel.error)
            if self.run_dir is not None:
                self.run_dir.kernel(kernel.name, kernel.files, kernel.meta())
        self.externs += extern_facts(compiled, graph, self.gpu)
        return interpret(graph)


def require_triton() -> None:
    """Raise a `CompileError` that says how to get Triton, when it is missing."""
    if importlib.util.find_spec("triton") is None:
        raise CompileError("Triton is not installed: pip install 'deepcompile[triton]'")
