"""Triton of a kernel that runs over a table of rows, and what the host writes for it.

@triton.jit
def k0(places, chunks): ...  # programs: one a chunk, which is a part of one row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.nest import Kernel
from ..ir.traffic import BYTES
from .steps import TableStep
from .triton_function import TritonFunction
from .triton_kernel import module_text
from .triton_schedule import TritonSchedule
from .triton_spelling import TRITON_DTYPE
from .triton_tiles import Main

CHUNK = 3
"""Numbers that say what a program does."""
VECTOR = 16
"""Bytes of the widest access to memory, which has to begin at a multiple of them."""


@dataclass(frozen=True)
class TritonTable:
    """A kernel as Triton that runs over a table of rows.

    The function takes two arrays of i64 in the device's memory. `places[row * buffers + b]` is the
    address of the first element of buffer `b`; `chunks[3 * program ..]` are a row, the first
    element to do, a multiple of `block`, and the row's extent: the value of the kernel's size.

    Attributes:
        block: elements of a row that a program does.
    """

    kernel: Kernel
    function: TritonFunction
    block: int

    @property
    def functions(self) -> tuple[TritonFunction, ...]:
        """The one function, as other kernels have several."""
        return (self.function,)

    @property
    def source(self) -> str:
        """The module's text."""
        return module_text(self.functions)


def emit_triton_table(
    kernel: Kernel, name: str, block: int = 1024, warps: int = 4, *, contracts: bool = True
) -> TritonTable:
    """The Triton of `kernel` over a table, for kernels that `batch.tabular_kernels` lets pass.

    Args:
        block: elements that a program does, a power of two; 1 for a kernel without axes.
        warps: warps of a program; 1 for a kernel without axes.
        contracts: see `TritonSchedule`.

    Raises:
        CannotEmit: when an op has no Triton spelling.
    """
    if not kernel.axes:
        block = warps = 1
    schedule = TritonSchedule(block, 1, True, warps, wide=True, contracts=contracts)
    return TritonTable(kernel, _Table(kernel, schedule, name).emit(), block)


def chunks_of(extents: Sequence[int], block: int) -> list[int]:
    """What each program does: row, first element and extent, one after another."""
    return [
        number
        for row, extent in enumerate(extents)
        for first in range(0, extent, block)
        for number in (row, first, extent)
    ]


def sources_of(step: TableStep) -> list[tuple[int, int]]:
    """Where each buffer of each row begins: its slot and bytes behind. The host writes `places`."""
    return [
        source
        for slots, offsets in zip(step.slots, step.offsets, strict=True)
        for source in zip(slots, offsets, strict=True)
    ]


class _Table(Main):
    """The function over chunks of rows.

    Whether a chunk is whole and its tensors begin at multiples of 16 bytes is seen at run time:
    then all of it is done at once, in vectors; else in pieces of an element a thread, with masks.
    """

    def emit(self) -> TritonFunction:
        self.line(f"chunk = chunks + {CHUNK} * tl.program_id(0)")
        self.line(f"place = places + {len(self.kernel.buffers)} * tl.load(chunk)")
        for number, buffer in enumerate(self.kernel.buffers):
            self.line(f"{buffer.name}_at = tl.load(place + {number})")
        for size in self.kernel.sizes:
            self.line(f"{size} = tl.load(chunk + 2)")
        if self.kernel.axes:
            self._chunk()
        else:
            self._cast()
            for stage in self.kernel.stages:
                self._body(stage.body)
        text = "\n".join([f"def {self.name}(places, chunks):", *self.lines])
        signature = {"places": "*i64", "chunks": "*i64"}
        warps, contracts = self.schedule.warps, self.schedule.contracts
        return TritonFunction(self.name, text, signature, warps, "table", contracts=contracts)

    def _chunk(self) -> None:
        block, extent = self.x_size, self.i(self.points)
        self.line(f"x_start = tl.multiple_of(tl.load(chunk + 1), {block})")
        along = [buffer for buffer in self.kernel.buffers if buffer.shape]
        together = " | ".join(f"{buffer.name}_at" for buffer in along)
        self.line(f"aligned = ({together}) % {VECTOR} == 0")
        with self.block(f"if aligned & (x_start + {block} <= {extent}):"):
            # As many elements for narrow dtypes as for the widest: so a thread keeps its elements.
            self._cast(VECTOR // max(BYTES[buffer.dtype] for buffer in along))
            self.mask_points = False
            self._tile()
        with self.block("else:"):
            self._cast()
            self.mask_points = True
            self.x_size = str(min(self.schedule.x_block, 32 * self.schedule.warps))
            end = f"tl.minimum(x_start + {block}, {extent})"
            with self.block(f"for x_start in range(x_start, {end}, {self.x_size}):"):
                self._tile()

    def _cast(self, vector: int = 1) -> None:
        """Addresses as pointers, those of rows multiples of `vector` elements.

        Each branch casts for itself: what is said of a value holds wherever that value is used.
        """
        for buffer in self.kernel.buffers:
            text = f"{buffer.name}_at.to(tl.pointer_type({TRITON_DTYPE[buffer.dtype]}))"
            if vector > 1 and buffer.shape:
                text = f"tl.multiple_of({text}, {vector * BYTES[buffer.dtype]})"
            self.line(f"{buffer.name} = {text}")
