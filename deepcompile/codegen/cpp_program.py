"""One translation unit a graph: prelude, kernels, and the function that runs the whole program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from ..ir.index import ZERO, Index
from ..ir.nest import Check
from .cpp_kernel import CppKernel, emit_kernel
from .cpp_table import emit_table_kernel, table_support
from .program import CannotCompile, ProgramSpec
from .steps import ExternStep, KernelStep, LifetimeStep, TableStep, TransposeStep

LONG_KERNEL = 30_000
"""Characters of a kernel's text from which on optimising it in full takes many seconds."""


LONGEST_KERNEL = 250_000
"""A kernel with more text than this is not built: that would take minutes and gigabytes."""


@dataclass(frozen=True)
class CppProgram:
    """Source text, and per kernel function the bytes of workspace a thread needs."""

    source: str
    kernels: tuple[str, ...]
    workspace: tuple[Index, ...]

    @property
    def has_long_kernels(self) -> bool:
        """Whether optimising a kernel in full would take a C++ compiler minutes."""
        return any(len(kernel) > LONG_KERNEL for kernel in self.kernels)


@lru_cache(maxsize=1)
def prelude() -> str:
    """The vector math and threading text that stands before every program."""
    folder = resources.files(__package__)
    return "\n".join((folder / name).read_text() for name in ("prelude.h", "team.h"))


def emit_program(spec: ProgramSpec, *, keeps_order: bool = False) -> CppProgram:
    """C++ of a program. Kernel `i` of the spec becomes the function `k<i>`.

    Args:
        keeps_order: sums add in orders of their own; see `emit_kernel`.

    The entry point is `int deepcompile_program(void **slots, const i64 *sizes, char *workspace,
    i64 threads, int (*extern_call)(int), const i64 *const *tables, void (*watch)(int))`; `tables`
    are those of the table steps, in order. `extern_call` does the extern and lifetime steps,
    numbered in order. `watch`, if there is one, is called with the number of a kernel's step before
    it and with `~number` after it. The result is 0, -1 when an extern call failed, or 1 + the
    number of the step in which the user's index was out of range.

    Raises:
        CannotCompile: when a kernel's text is too long to build.
    """
    tabular = {step.function for step in spec.steps if isinstance(step, TableStep)}
    kernels: list[CppKernel] = [
        emit_table_kernel(op.nest, f"k{number}")
        if number in tabular
        else emit_kernel(op.nest, f"k{number}", keeps_order=keeps_order)
        for number, op in enumerate(spec.kernels)
    ]
    for op, kernel in zip(spec.kernels, kernels, strict=True):
        if len(kernel.body) > LONGEST_KERNEL:
            where = f" at {', '.join(op.origin.lines)}" if op.origin.lines else ""
            raise CannotCompile(
                f"{op.nest.name}{where} would be {len(kernel.body)} characters of C++"
            )
    names = list(spec.sizes)
    lines = [
        'extern "C" int deepcompile_program(void **slots, const i64 *sizes, char *workspace,',
        "                                   i64 threads, int (*extern_call)(int),",
        "                                   const i64 *const *tables, void (*watch)(int)) {",
        "  (void)slots; (void)sizes; (void)workspace; (void)threads; (void)extern_call;",
        "  (void)tables; (void)watch;",
        "  int failed = 0; (void)failed;",
    ]
    extern = table = 0
    for number, step in enumerate(spec.steps):
        if isinstance(step, (ExternStep, LifetimeStep)):
            lines.append(f"  if (extern_call({extern})) return -1;")
            extern += 1
            continue
        if isinstance(step, TransposeStep):
            lines.append(_transpose(step, names))
            continue
        lines.append(f"  if (watch) watch({number});")
        if isinstance(step, TableStep):
            lines.append(f"  k{step.function}(slots, tables[{table}], threads);")
            lines.append(f"  if (watch) watch({~number});")
            table += 1
            continue
        lines.append(_call(step, names))
        lines.append(f"  if (watch) watch({~number});")
        if any(isinstance(instr, Check) for instr in step.op.nest.instructions()):
            lines.append(f"  if (failed) return {number + 1};")
    lines += ["  return 0;", "}"]
    support = [table_support()] if tabular else []
    source = "\n".join([prelude(), *support, *[kernel.body for kernel in kernels], *lines, ""])
    return CppProgram(
        source,
        tuple(kernel.body for kernel in kernels),
        tuple(kernel.workspace for kernel in kernels),
    )


def _call(step: KernelStep, names: list[str]) -> str:
    buffers = ", ".join(
        f"slots[{slot}]" if offset == ZERO else f"(char *)slots[{slot}] + {_size(offset, names)}"
        for slot, offset in zip(step.slots, step.offsets, strict=True)
    )
    sizes = ", ".join(f"sizes[{names.index(name)}]" for name in step.sizes) or "0"
    return (
        f"  {{ void *b[] = {{{buffers}}}; const i64 z[] = {{{sizes}}}; "
        f"k{step.function}(b, z, workspace, threads, &failed); }}"
    )


def _transpose(step: TransposeStep, names: list[str]) -> str:
    arguments = (step.rows, step.columns, step.source_stride, step.target_stride)
    numbers = ", ".join(_size(argument, names) for argument in arguments)
    source = f"(const float *)slots[{step.source}]"
    if step.source_offset != ZERO:
        source += f" + {_size(step.source_offset, names)}"
    return f"  dc_transpose({source}, (float *)slots[{step.target}], {numbers}, threads);"


def _size(index: Index, names: list[str]) -> str:
    """A size expression in C++."""
    values = {name: Index.of(f"sizes[{number}]") for number, name in enumerate(names)}
    return f"({index.substitute(values, {})})"
