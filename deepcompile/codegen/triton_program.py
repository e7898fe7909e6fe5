"""Triton for the kernels of a program, a module each so that equal ones are shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .program import ProgramSpec
from .steps import TableStep
from .triton_kernel import TritonKernel, emit_triton
from .triton_schedule import Gpu, plan_triton
from .triton_spelling import CannotEmit
from .triton_table import TritonTable, emit_triton_table


@dataclass(frozen=True)
class TritonProgram:
    """Kernel `i` of the spec as Triton, or the reason why it runs as its ATen ops."""

    kernels: tuple[TritonKernel | TritonTable | str, ...]


def emit_triton_program(
    spec: ProgramSpec, hints: Mapping[str, int], gpu: Gpu, *, contracts: bool = True
) -> TritonProgram:
    """Triton of a program.

    Args:
        hints: likely values of its sizes.
        contracts: see `TritonSchedule`.
    """
    tabular = {step.function for step in spec.steps if isinstance(step, TableStep)}
    made: list[TritonKernel | TritonTable | str] = []
    for number, op in enumerate(spec.kernels):
        try:
            if number in tabular:
                made.append(emit_triton_table(op.nest, "kernel", contracts=contracts))
                continue
            known = {name: hints[name] for name in op.nest.sizes if name in hints}
            schedule = replace(plan_triton(op.nest, known, gpu), contracts=contracts)
            made.append(emit_triton(op.nest, schedule, "kernel"))
        except CannotEmit as reason:
            made.append(str(reason))
    return TritonProgram(tuple(made))
