"""Launching one emitted kernel on tensors, for tests of what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from deepcompile.codegen.triton_function import TritonFunction
from deepcompile.codegen.triton_kernel import TritonKernel
from deepcompile.ir.interpret import TORCH_DTYPES


def launch(
    kernel: TritonKernel,
    module: ModuleType,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    failed: Tensor | None = None,
) -> None:
    """Run a kernel on tensors by buffer name, each beginning at its buffer's first element.

    This needs Triton's interpreter (`TRITON_INTERPRET=1`). An index out of range sets `failed`, one
    i32.
    """
    device = next(iter(tensors.values())).device
    rows = kernel.rows(sizes)
    spaces = [
        torch.empty(
            max(1, rows * int(space.columns.evaluate(sizes))),
            dtype=TORCH_DTYPES[space.dtype],
            device=device,
        )
        for space in kernel.workspaces
    ]
    arguments = [
        *(tensors[buffer.name] for buffer in kernel.kernel.buffers),
        *(sizes[name] for name in kernel.kernel.sizes),
        *spaces,
    ]
    if kernel.checks():
        if failed is None:
            failed = torch.zeros(1, dtype=torch.int32, device=device)
        arguments.append(failed)
    for function in kernel.functions:
        programs = kernel.programs(function, sizes)
        if programs:
            last = [rows] if function.grid == "columns" else []
            _call(module, function, programs, [*arguments, *last])


def _call(
    module: ModuleType, function: TritonFunction, programs: int, arguments: list[Any]
) -> None:
    getattr(module, function.name)[(programs,)](*arguments)
