"""A program of Triton kernels bound to sizes: its launch table and the layout of its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codegen.program import ProgramSpec
from ..codegen.steps import ExternStep, KernelStep, TensorRef, touched
from ..codegen.triton_kernel import TritonKernel
from ..ir.interpret import TORCH_DTYPES
from .arena import ALIGNMENT, ArenaPlan, Lifetime, plan_arena
from .externs import prepare_extern, tensor_of
from .frame import Frame, Place
from .launch_table import ALIGNED, MOST_ARGUMENTS, NUMBER, POINTER, Argument, LaunchTable
from .launch_table import ALIGNMENT as POINTER_ALIGNMENT
from .triton_flags import Flags
from .triton_kernels import LoadedKernel, TritonKernels

CallBack = Callable[[Frame], None]


@dataclass(frozen=True)
class Made:
    """A tensor that a call makes for an output: its slot and layout."""

    slot: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def empty(self, device: torch.device) -> Tensor:
        """A new tensor of this layout."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device)


@dataclass
class Bound:
    """Everything that is the same in each call with these sizes.

    Attributes:
        slots: how many a frame has, those of workspaces included.
        table: what to launch; see `launch_table`.
        calls: what the walk calls back, by number.
        general: what fills in the code for unaligned arguments, by place in the table.
        places: of slots in the arena.
        outputs: tensors that a call makes anew.
        idle: frames that no call uses now.
    """

    sizes: dict[str, int]
    slots: int
    table: Any
    calls: list[CallBack]
    general: dict[int, Callable[[], None]]
    arena: ArenaPlan
    places: list[Place]
    outputs: list[Made]
    read_by_kernels: frozenset[int]
    idle: list[Any] = field(default_factory=list)

    @property
    def arena_bytes(self) -> int:
        """What a block of memory for one call has to hold."""
        return self.arena.size + ALIGNMENT if self.places else 0


class Binder:
    """Binds a program to sizes, once."""

    def __init__(
        self, spec: ProgramSpec, kernels: TritonKernels, flags: Flags, sizes: dict[str, int]
    ) -> None:
        self.spec = spec
        self.kernels = kernels
        self.flags = flags
        self.sizes = sizes
        self.table = LaunchTable()
        self.calls: list[CallBack] = []
        self.general: dict[int, Callable[[], None]] = {}
        # Where memory of the arena is needed beside the slots: its bytes and the step.
        self.workspaces: list[tuple[int, int]] = []
        self.seen: set[int] = set()
        self.forgotten = -1
        self.read_by_kernels = frozenset(
            slot
            for step in spec.steps
            if not isinstance(step, ExternStep)
            for slot in touched(step)
        )

    def bind(self) -> Bound:
        """The table and the layout of memory.

        Raises:
            CompileError: in strict mode, when Triton refuses a kernel.
        """
        for number, step in enumerate(self.spec.steps):
            if isinstance(step, KernelStep):
                self._kernel(number, step)
            elif isinstance(step, ExternStep):
                run = prepare_extern(step, self.sizes, self.read_by_kernels)
                self._call(number, run, touched(step))
            else:
                raise AssertionError(f"{type(step).__name__} is for the CPU")
        arena, places, outputs = self._memory()
        return Bound(
            self.sizes,
            len(self.spec.slots) + len(self.workspaces),
            self.table.done(),
            self.calls,
            self.general,
            arena,
            places,
            outputs,
            self.read_by_kernels,
        )

    # -- calls ------------------------------------------------------------------------------------

    def _call(self, number: int, run: CallBack, slots: set[int]) -> None:
        """Call back into Python, which then lets go of tensors that nothing needs any more."""
        self.seen |= slots
        self.table.call(len(self.calls))
        dead = self._dead(number)
        self.calls.append(partial(_run_and_forget, run, dead) if dead else run)

    def _dead(self, number: int) -> tuple[int, ...]:
        """Slots last needed by this step, or by launches since the call before it."""
        kept = {ref.slot for ref in self.spec.outputs if isinstance(ref, TensorRef)}
        since, self.forgotten = self.forgotten, number
        return tuple(
            slot.number
            for slot in self.spec.slots
            if slot.storage in ("input", "extern")
            and since < slot.last <= number
            and slot.number not in kept
        )

    # -- kernels ----------------------------------------------------------------------------------

    def _kernel(self, number: int, step: KernelStep) -> None:
        emitted = self.kernels.emitted(step.function)
        known = {name: self.sizes[name] for name in step.sizes}
        offsets = [int(offset.evaluate(self.sizes)) for offset in step.offsets]
        divisible = frozenset(
            [
                buffer.name
                for buffer, offset in zip(step.op.nest.buffers, offsets, strict=True)
                if offset % POINTER_ALIGNMENT == 0
            ]
            + [name for name, size in known.items() if size % POINTER_ALIGNMENT == 0]
        )
        made = None
        if not isinstance(emitted, str):
            made = self.kernels.load(step.function, divisible | _spaces(emitted))
        if made is None or len(step.slots) + len(known) > MOST_ARGUMENTS // 2:
            self._call(number, _as_aten(self.spec, step, self.sizes), touched(step))
            return
        self._launches(number, step, made, known, offsets, divisible)

    def _launches(
        self,
        number: int,
        step: KernelStep,
        made: LoadedKernel,
        known: Mapping[str, int],
        offsets: list[int],
        divisible: frozenset[str],
    ) -> None:
        kernel = made.kernel
        rows = kernel.rows(known)
        arguments = [
            Argument(ALIGNED if buffer.name in divisible else POINTER, slot, offset)
            for buffer, slot, offset in zip(
                step.op.nest.buffers, step.slots, offsets, strict=True
            )
        ]
        arguments += [Argument(NUMBER, value) for value in known.values()]
        for space in kernel.workspaces:
            elements = max(1, rows * int(space.columns.evaluate(known)))
            slot = self._workspace(number, elements * TORCH_DTYPES[space.dtype].itemsize)
            arguments.append(Argument(ALIGNED, slot))
        if kernel.checks():
            arguments.append(Argument(NUMBER, self.flags.address(step.function)))
        sizes = divisible & frozenset(known)
        for place, (function, loaded) in enumerate(
            zip(kernel.functions, made.loaded, strict=True)
        ):
            programs = kernel.programs(function, known)
            if not programs:
                continue
            last = [Argument(NUMBER, rows)] if function.grid == "columns" else []
            hidden = [Argument(NUMBER, 0)] * loaded.hidden
            at = self.table.launch(
                made.assuming[place],
                made.general[place],
                programs,
                [*arguments, *last, *hidden],
            )
            self.general[at] = partial(self.kernels.make_general, made, place, sizes)

    def _workspace(self, step: int, nbytes: int) -> int:
        self.workspaces.append((nbytes, step))
        return len(self.spec.slots) + len(self.workspaces) - 1

    # -- memory -----------------------------------------------------------------------------------

    def _memory(self) -> tuple[ArenaPlan, list[Place], list[Made]]:
        """Offsets in the arena for intermediates and workspaces, and the outputs."""
        lifetimes: list[Lifetime] = []
        layouts: list[Made] = []
        outputs: list[Made] = []
        for slot in self.spec.slots:
            if slot.storage not in ("output", "arena"):
                continue
            shape = tuple(int(size.evaluate(self.sizes)) for size in slot.layout.shape)
            strides = tuple(int(stride.evaluate(self.sizes)) for stride in slot.layout.strides)
            made = Made(slot.number, shape, strides, slot.layout.dtype)
            if slot.storage == "output":
                outputs.append(made)
            else:
                nbytes = _span(shape, strides) * slot.layout.dtype.itemsize
                lifetimes.append(Lifetime(nbytes, slot.first, slot.last))
                layouts.append(made)
        lifetimes += [Lifetime(nbytes, step, step) for nbytes, step in self.workspaces]
        arena = plan_arena(lifetimes)
        places = [
            Place(made.slot, offset, made.shape, made.strides, made.dtype)
            if made.slot in self.seen
            else Place(made.slot, offset, None)
            for made, offset in zip(layouts, arena.offsets, strict=False)
        ]
        places += [
            Place(len(self.spec.slots) + number, offset, None)
            for number, offset in enumerate(arena.offsets[len(layouts) :])
        ]
        return arena, places, outputs


def _run_and_forget(run: CallBack, dead: tuple[int, ...], frame: Frame) -> None:
    run(frame)
    for slot in dead:
        frame.tensors[slot] = None


def _spaces(kernel: TritonKernel) -> frozenset[str]:
    return frozenset(space.name for space in kernel.workspaces)


def _as_aten(spec: ProgramSpec, step: KernelStep, sizes: Mapping[str, int]) -> CallBack:
    """A step by the ATen ops that its kernel was made of."""
    given = [tensor_of(ref, sizes) for ref in step.given]
    numbers = [sizes[name] for name in step.sizes]
    out = [
        slot
        for buffer, slot in zip(step.op.nest.buffers, step.slots, strict=True)
        if buffer.role == "out"
    ]

    def run(frame: Frame) -> None:
        results = step.op.eager(*(get(frame.tensors) for get in given), *numbers)
        for slot, result in zip(out, results, strict=True):
            frame.tensors[slot].copy_(result)

    return run


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to behind the last."""
    if any(size == 0 for size in shape):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
