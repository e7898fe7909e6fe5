"""Loading generated Triton and launching one kernel on tensors."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..codegen.triton_function import TritonFunction
from ..codegen.triton_kernel import TritonKernel
from ..codegen.triton_table import CHUNK, TritonTable
from ..ir.interpret import TORCH_DTYPES


def load_source(source: str, folder: Path) -> ModuleType:
    """The module of a generated source, a file in `folder` since Triton reads functions there.

    The same source gives the same module.
    """
    name = f"deepcompile_triton_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    path = folder / f"{name}.py"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{id(source)}.tmp")
        partial.write_text(source, encoding="utf-8")
        partial.replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def launch(
    kernel: TritonKernel,
    module: ModuleType,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    failed: Tensor | None = None,
) -> int:
    """Run a kernel on tensors by buffer name, each beginning at its buffer's first element.

    On CPU tensors this needs Triton's interpreter (`TRITON_INTERPRET=1`). An index out of range
    sets `failed`, one i32. Returns how many of its registers' bytes a thread keeps in memory, 0 if
    all is well.
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
    spilled = 0
    for function in kernel.functions:
        programs = kernel.programs(function, sizes)
        if programs:
            last = [rows] if function.grid == "columns" else []
            spilled = max(spilled, _call(module, function, programs, [*arguments, *last]))
    return spilled


def launch_table(table: TritonTable, module: ModuleType, places: Tensor, chunks: Tensor) -> int:
    """Run a kernel over a table, whose two arrays are on the device; returns what `launch` does."""
    programs = len(chunks) // CHUNK
    return _call(module, table.function, programs, [places, chunks]) if programs else 0


def _call(module: ModuleType, function: TritonFunction, programs: int, arguments: list[Any]) -> int:
    launcher = getattr(module, function.name)[(programs,)]
    compiled = launcher(*arguments, num_warps=function.warps, enable_fp_fusion=True)
    return int(getattr(compiled, "n_spills", 0) or 0)
