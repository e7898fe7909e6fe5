"""The vocabulary of programs: slots, references to them, and the steps that fill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..ir.index import ZERO, Index
from ..ir.kernel_op import KernelOp

Storage = Literal["input", "arena", "own", "output", "extern", "constant"]
"""Where a slot lies: `arena`, in the block of intermediates; `own`, an intermediate in memory that
steps of the program take and let go of; `extern`, what a call of ATen has made."""


@dataclass(frozen=True)
class Layout:
    """Sizes and strides in elements and the torch dtype of a tensor."""

    shape: tuple[Index, ...]
    strides: tuple[Index, ...]
    dtype: torch.dtype


@dataclass
class Slot:
    """A storage: where it lives, and from which to which step (inclusive) it is needed.

    Attributes:
        first, last: -1 when no step touches it. What views of it need is counted in.
        view_of: the slot whose memory this one is, where ATen made a view of an earlier slot.
    """

    number: int
    layout: Layout
    storage: Storage
    first: int = -1
    last: int = -1
    constant: torch.Tensor | None = None
    view_of: int | None = None


@dataclass(frozen=True)
class TensorRef:
    """A tensor over a slot; `offset` in elements from the slot's own first element."""

    slot: int
    layout: Layout
    offset: Index
    whole: bool


@dataclass(frozen=True)
class SizeRef:
    """An integer known when the sizes are."""

    index: Index


@dataclass(frozen=True)
class KernelStep:
    """A call of a generated kernel: slots of its buffers and where in them, in bytes; its sizes.

    `given` are the tensors of its "in" and "inout" buffers as ATen would get them.
    """

    op: KernelOp
    function: int
    slots: tuple[int, ...]
    offsets: tuple[Index, ...]
    sizes: tuple[str, ...]
    given: tuple[TensorRef, ...]


@dataclass(frozen=True)
class TableStep:
    """A generated kernel for each row of a table, called once.

    A row has the slots of the kernel's buffers, where in them in bytes, and its extent: the value
    of the kernel's size, if it has one.
    """

    op: KernelOp
    function: int
    slots: tuple[tuple[int, ...], ...]
    offsets: tuple[tuple[int, ...], ...]
    extents: tuple[int, ...]


@dataclass(frozen=True)
class ExternStep:
    """A call of ATen: `out` is a slot given as `out=`, else `results` are slots of its results."""

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: int | None
    results: tuple[int | None, ...]
    single: bool
    layouts: Mapping[int, Layout]


@dataclass(frozen=True)
class TransposeStep:
    """Write the transpose of a `rows x columns` matrix (leading strides in elements) to a slot.

    The matrix begins `source_offset` elements into its slot.
    """

    source: int
    target: int
    rows: Index
    columns: Index
    source_stride: Index
    target_stride: Index
    source_offset: Index = ZERO


@dataclass(frozen=True)
class LifetimeStep:
    """Let go of the slots in `release`, then take memory for those in `allocate`."""

    allocate: tuple[int, ...]
    release: tuple[int, ...]


Step = KernelStep | TableStep | ExternStep | TransposeStep | LifetimeStep


@dataclass
class ProgramSpec:
    """Everything about one compiled graph but its code."""

    inputs: list[TensorRef | SizeRef | None]
    slots: list[Slot]
    steps: list[Step]
    outputs: list[Any]
    kernels: list[KernelOp]
    sizes: dict[str, Callable[[list[Any]], int]] = field(default_factory=dict)


def tensor_refs(value: Any) -> list[TensorRef]:
    """All tensor references in nested arguments."""
    if isinstance(value, TensorRef):
        return [value]
    if isinstance(value, (list, tuple)):
        return [ref for item in value for ref in tensor_refs(item)]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in tensor_refs(item)]
    return []


def touched(step: Step) -> set[int]:
    """The slots that a step reads or writes."""
    if isinstance(step, KernelStep):
        return set(step.slots)
    if isinstance(step, TableStep):
        return set().union(*step.slots)
    if isinstance(step, TransposeStep):
        return {step.source, step.target}
    if isinstance(step, LifetimeStep):
        return set()
    found = {slot for slot in step.results if slot is not None}
    return found | {ref.slot for ref in tensor_refs((step.args, dict(step.kwargs)))}
