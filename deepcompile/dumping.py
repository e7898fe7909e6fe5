"""Compiling a model for the sake of its run directory: every state of its graphs, nothing built.

The model is traced on fake tensors, forward and, where something needs a gradient, backward.
Nothing of it is executed, and no compiler of machine code is called.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_map

from deepcompile.backend import _Compiler
from deepcompile.capture.aot import interpret
from deepcompile.capture.fake_models import fake_model, fake_tensor
from deepcompile.codegen.cpp_program import emit_program
from deepcompile.errors import CompileError, ModelError
from deepcompile.options import Options
from deepcompile.pipeline.instruments import Selection
from deepcompile.recording import CompiledGraph, Kind


@dataclass(frozen=True)
class Request:
    """What of a compile is kept.

    Attributes:
        graphs, passes: see `Selection`.
        upto: the last pass that runs; code is generated only where all of them do.
    """

    graphs: re.Pattern[str] | None = None
    passes: re.Pattern[str] | None = None
    upto: str | None = None


def dump_model(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    options: Options,
    request: Request,
    *,
    train: bool | None = None,
    dynamic: bool | None = None,
) -> Path:
    """Compile `model` as called with `inputs`; the run directory.

    Args:
        model: a module on the CPU, or a function of tensors.
        inputs: its positional inputs; only their shapes and dtypes matter.
        options: with a `run_dir`.
        train: whether to trace backward; None for: where an output needs a gradient.
        dynamic: as of `torch.compile`.

    Raises:
        ModelError: the model cannot be traced without running it.
    """
    used: list[_DumpingCompiler] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        used.append(_DumpingCompiler(options, request))
        return used[-1].compile(gm, example_inputs)

    # Nothing of this trace may meet what the process has compiled for real.
    torch._dynamo.reset()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.set_grad_enabled(train is not False):
            fake = fake_model(model, mode)[0] if isinstance(model, nn.Module) else model
            arguments = tree_map(fake_tensor, tuple(inputs))
            result = torch.compile(fake, backend=backend, dynamic=dynamic)(*arguments)
            _backward(result)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ModelError(
            f"the model looks at values of its tensors ({error.func}), which tracing has not; "
            "deepcompile run MODEL --dump all runs it"
        ) from error
    except CompileError:
        raise
    except TorchDynamoException as error:
        raise ModelError(f"{type(error).__name__}: {error}") from error
    finally:
        torch._dynamo.reset()
    if not used or used[0].run_dir is None:
        raise ModelError("Dynamo captured no graph of the model, so there is nothing to dump")
    return used[0].run_dir.path


def _backward(result: Any) -> None:
    outputs = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
    trained = [out.sum() for out in outputs if out.requires_grad]
    if trained:
        torch.stack([out.float() for out in trained]).sum().backward()


class _DumpingCompiler(_Compiler):
    """The compiler of the backend, up to code; graphs then run on fake tensors as they came."""

    def __init__(self, options: Options, request: Request) -> None:
        super().__init__(options)
        self.selection = Selection(options.dump, request.graphs, request.passes)
        self.complete = request.upto is None
        if request.upto is not None:
            self.pipeline = self.pipeline.upto(request.upto)

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
        if self.complete and self.selection.has_graph(compiled.name):
            start = time.perf_counter()
            compiled.spec = self._program(graph, self._gemm_choice(), compiled.name)
            compiled.code = emit_program(compiled.spec, keeps_order=self.options.deterministic)
            compiled.seconds["codegen"] = time.perf_counter() - start
            codes = [compiled.code] * len(compiled.code.kernels)
            self._record_program(compiled, graph, "source.cpp", codes)
        return interpret(graph)
