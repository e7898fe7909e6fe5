"""The launches of one loaded kernel: how many programs each, and with which arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..codegen.triton_kernel import TritonKernel
from ..codegen.triton_matmul import TritonMatmul
from ..ir.interpret import TORCH_DTYPES
from ..ir.nest import Kernel
from .launch_table import ALIGNED, ALIGNMENT, NUMBER, POINTER, Argument
from .triton_kernels import LoadedKernel

Workspace = Callable[[int, torch.dtype], int]
"""Memory for so many elements, as a slot."""


@dataclass(frozen=True)
class Launch:
    """One launch of function number `function` of a kernel."""

    function: int
    programs: int
    arguments: list[Argument]


def divisible_arguments(
    nest: Kernel, offsets: Sequence[int], sizes: Mapping[str, int]
) -> frozenset[str]:
    """Arguments that are multiples of 16 if all slots begin at such: buffers, sizes, workspaces.

    Args:
        offsets: of each buffer in its slot, in bytes.
    """
    found = [b.name for b, at in zip(nest.buffers, offsets, strict=True) if at % ALIGNMENT == 0]
    found += [name for name, size in sizes.items() if size % ALIGNMENT == 0]
    return frozenset(found)


def launches(
    made: LoadedKernel,
    sizes: Mapping[str, int],
    places: Sequence[tuple[int, int]],
    divisible: frozenset[str],
    workspace: Workspace,
    failed: int,
) -> Iterator[Launch]:
    """What runs a kernel once, in order.

    Args:
        places: slot and bytes in it of each buffer.
        failed: address of what a failing index check sets.
    """
    kernel = made.kernel
    assert isinstance(kernel, TritonKernel)
    rows = kernel.rows(sizes)
    arguments = [
        Argument(ALIGNED if buffer.name in divisible else POINTER, slot, offset)
        for buffer, (slot, offset) in zip(kernel.kernel.buffers, places, strict=True)
    ]
    arguments += [Argument(NUMBER, sizes[name]) for name in kernel.kernel.sizes]
    for space in kernel.workspaces:
        elements = max(1, rows * int(space.columns.evaluate(sizes)))
        arguments.append(Argument(ALIGNED, workspace(elements, TORCH_DTYPES[space.dtype])))
    if kernel.checks():
        arguments.append(Argument(NUMBER, failed))
    for number, (function, loaded) in enumerate(zip(kernel.functions, made.loaded, strict=True)):
        programs = kernel.programs(function, sizes)
        if programs:
            last = [Argument(NUMBER, rows)] if function.grid == "columns" else []
            hidden = [Argument(NUMBER, 0)] * loaded.hidden
            yield Launch(number, programs, [*arguments, *last, *hidden])


def matmul_launch(
    made: LoadedKernel,
    operands: Mapping[str, tuple[int, int]],
    places: Sequence[tuple[int, int]],
    divisible: frozenset[str],
) -> Launch:
    """What runs a product with its epilogue once.

    Args:
        operands: slot and bytes in it by name, in the order of the function's arguments.
        places: the same for the buffers of the epilogue.
    """
    code = made.kernel
    assert isinstance(code, TritonMatmul)
    buffers = [buffer.name for buffer in code.kernel.buffers]
    named = [*operands.items(), *zip(buffers, places, strict=True)]
    arguments = [
        Argument(ALIGNED if name in divisible else POINTER, slot, offset)
        for name, (slot, offset) in named
    ]
    return Launch(0, code.programs, [*arguments, *[Argument(NUMBER, 0)] * made.loaded[0].hidden])
