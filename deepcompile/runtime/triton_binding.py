"""A program of Triton kernels bound to sizes: its launch table and the layout of its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codegen.program import ProgramSpec
from ..codegen.steps import (
    ExternStep,
    KernelStep,
    LifetimeStep,
    TableStep,
    TensorRef,
    touched,
)
from ..codegen.triton_kernel import TritonKernel
from ..codegen.triton_matmul import emit_matmul
from ..codegen.triton_table import CHUNK, TritonTable, chunks_of, sources_of
from .arena import ALIGNMENT, ArenaPlan, Lifetime, plan_arena, span
from .driver import Driver
from .externs import prepare_extern, tensor_of
from .frame import Frame, Place
from .launch_table import ALIGNED, MOST_ARGUMENTS, NUMBER, Argument, LaunchTable
from .launcher import Launcher
from .lifetimes import made_by_steps, prepare_lifetimes
from .triton_flags import Flags
from .triton_kernels import LoadedKernel, TritonKernels
from .triton_launches import divisible_arguments, launches, matmul_launch
from .triton_matmuls import fusible
from .triton_tuning import Tuner

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
        outputs: tensors that a call makes anew before the first step.
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


@dataclass(frozen=True)
class _Workspace:
    """Memory of the arena for one step; `seen` when a call needs it as a tensor."""

    elements: int
    dtype: torch.dtype
    step: int
    seen: bool

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


class Binder:
    """Binds a program to sizes, once."""

    def __init__(
        self,
        spec: ProgramSpec,
        kernels: TritonKernels,
        flags: Flags,
        driver: Driver,
        launcher: Launcher,
        tuner: Tuner | None,
        sizes: dict[str, int],
    ) -> None:
        self.spec = spec
        self.kernels = kernels
        self.flags = flags
        self.driver = driver
        self.launcher = launcher
        self.tuner = tuner
        self.sizes = sizes
        self.table = LaunchTable()
        self.calls: list[CallBack] = []
        self.general: dict[int, Callable[[], None]] = {}
        # What is needed beside the slots, numbered behind them, each in one step.
        self.workspaces: list[_Workspace] = []
        self.seen: set[int] = set()
        # Slots that are needed longer than the program says, and until which step.
        self.until: dict[int, int] = {}
        # Steps that are part of the one before.
        self.done: set[int] = set()
        self.forgotten = -1
        self.follows_lifetimes = any(isinstance(step, LifetimeStep) for step in spec.steps)
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
            if number in self.done or self._matmul(number):
                continue
            if isinstance(step, KernelStep):
                self._kernel(number, step)
            elif isinstance(step, TableStep):
                self._table(number, step)
            elif isinstance(step, ExternStep):
                run = prepare_extern(step, self.sizes, self.read_by_kernels)
                self._call(number, run, touched(step))
            elif isinstance(step, LifetimeStep):
                run = prepare_lifetimes(step, self.spec.slots, self.sizes, self.driver.device)
                self._call(number, run, set())
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
        """Slots last needed by this step, or by launches since the call before it.

        None in a program whose steps say what to let go of.
        """
        if self.follows_lifetimes:
            return ()
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
        divisible = divisible_arguments(step.op.nest, offsets, known)
        made = None
        if isinstance(emitted, TritonKernel):
            if self.tuner is not None:
                by_rule = self.kernels.by_rule(step.function)
                schedule = self.tuner.schedule(self.spec, step, self.sizes, by_rule)
                if schedule != emitted.schedule:
                    self.kernels.schedule(step.function, schedule)
            made = self.kernels.load(step.function, divisible)
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
        places = list(zip(step.slots, offsets, strict=True))
        workspace = partial(self._workspace, number)
        failed = self.flags.address(step.function)
        sizes = divisible & frozenset(known)
        for launch in launches(made, known, places, divisible, workspace, failed):
            record = made.assuming[launch.function], made.general[launch.function]
            at = self.table.launch(*record, launch.programs, launch.arguments)
            self.general[at] = partial(self.kernels.make_general, made, launch.function, sizes)

    def _matmul(self, number: int) -> bool:
        """Do a product and the next step in one kernel, if that was measured to be faster."""
        pair = fusible(self.spec, number, self.sizes) if self.tuner is not None else None
        if pair is None or self.tuner is None:
            return False
        step, emitted = pair.epilogue, self.kernels.emitted(pair.epilogue.function)
        if not isinstance(emitted, TritonKernel):
            return False
        by_rule = self.kernels.by_rule(step.function)
        tile = self.tuner.matmul(self.spec, pair, self.sizes, by_rule)
        if tile is None:
            return False
        offsets = [int(offset.evaluate(self.sizes)) for offset in step.offsets]
        divisible = pair.divisible(self.sizes)
        code = emit_matmul(step.op.nest, pair.buffer, pair.shape, tile, "kernel")
        try:
            made = self.kernels.build(code, divisible)
        except Exception as error:  # remembered from when the device took it: the library can do it
            self.kernels.note("candidate-refused", reason=f"{type(error).__name__}: {error}"[:500])
            return False
        places = list(zip(step.slots, offsets, strict=True))
        launch = matmul_launch(made, pair.operands, places, divisible)
        at = self.table.launch(made.assuming[0], made.general[0], launch.programs, launch.arguments)
        self.general[at] = partial(self.kernels.make_general, made, 0, frozenset())
        self.done.add(number + 1)
        self.until |= dict.fromkeys(touched(pair.product), number + 1)
        return True

    def _table(self, number: int, step: TableStep) -> None:
        """All rows of a table in one launch; their addresses are sent to the device before."""
        table = self.kernels.emitted(step.function)
        made = None
        if isinstance(table, TritonTable):
            made = self.kernels.load(step.function, frozenset(table.function.signature))
        if made is None or not isinstance(table, TritonTable):
            self._call(number, partial(_rows_as_aten, step), touched(step))
            return
        chunks = torch.tensor(chunks_of(step.extents, table.block), dtype=torch.int64)
        if not len(chunks):
            return
        sources = [number for source in sources_of(step) for number in source]
        array = (ctypes.c_int64 * len(sources))(*sources)
        places = self._workspace(number, len(sources) // 2, torch.int64, seen=True)
        self._call(number, partial(_send_places, self.launcher, self.driver, array, places), set())
        there = chunks.to(self.driver.device)
        self.table.keep(there)
        self.table.launch(
            made.assuming[0],
            made.general[0],
            len(chunks) // CHUNK,
            [
                Argument(ALIGNED, places),
                Argument(NUMBER, there.data_ptr()),
                *[Argument(NUMBER, 0)] * made.loaded[0].hidden,
            ],
        )

    def _workspace(
        self, step: int, elements: int, dtype: torch.dtype, *, seen: bool = False
    ) -> int:
        self.workspaces.append(_Workspace(elements, dtype, step, seen))
        return len(self.spec.slots) + len(self.workspaces) - 1

    # -- memory -----------------------------------------------------------------------------------

    def _memory(self) -> tuple[ArenaPlan, list[Place], list[Made]]:
        """Offsets in the arena for intermediates and workspaces, and the outputs."""
        lifetimes: list[Lifetime] = []
        layouts: list[Made] = []
        outputs: list[Made] = []
        made_later = made_by_steps(self.spec.steps)
        for slot in self.spec.slots:
            if slot.storage not in ("output", "arena") or slot.number in made_later:
                continue
            shape = tuple(int(size.evaluate(self.sizes)) for size in slot.layout.shape)
            strides = tuple(int(stride.evaluate(self.sizes)) for stride in slot.layout.strides)
            made = Made(slot.number, shape, strides, slot.layout.dtype)
            if slot.storage == "output":
                outputs.append(made)
            else:
                nbytes = span(shape, strides) * slot.layout.dtype.itemsize
                last = max(slot.last, self.until.get(slot.number, slot.last))
                lifetimes.append(Lifetime(nbytes, slot.first, last))
                layouts.append(made)
        lifetimes += [Lifetime(w.nbytes, w.step, w.step) for w in self.workspaces]
        arena = plan_arena(lifetimes)
        places = [
            Place(made.slot, offset, made.shape, made.strides, made.dtype)
            if made.slot in self.seen
            else Place(made.slot, offset, None)
            for made, offset in zip(layouts, arena.offsets, strict=False)
        ]
        behind = arena.offsets[len(layouts) :]
        for number, (offset, w) in enumerate(zip(behind, self.workspaces, strict=True)):
            place = Place(len(self.spec.slots) + number, offset, None)
            if w.seen:
                place = replace(place, shape=(w.elements,), strides=(1,), dtype=w.dtype)
            places.append(place)
        return arena, places, outputs


def _run_and_forget(run: CallBack, dead: tuple[int, ...], frame: Frame) -> None:
    run(frame)
    for slot in dead:
        frame.tensors[slot] = None


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


def _rows_as_aten(step: TableStep, frame: Frame) -> None:
    """A table step by the ATen ops that its kernel was made of, one row after another."""
    nest = step.op.nest
    for slots, offsets, extent in zip(step.slots, step.offsets, step.extents, strict=True):
        sizes = dict.fromkeys(nest.sizes, extent)
        given: list[Tensor] = []
        made: list[Tensor] = []
        for buffer, slot, offset in zip(nest.buffers, slots, offsets, strict=True):
            tensor = frame.tensors[slot]
            shape = tuple(int(size.evaluate(sizes)) for size in buffer.shape)
            first = tensor.storage_offset() + offset // tensor.element_size()
            row = tensor.as_strided(shape, (1,) * len(shape), first)
            (made if buffer.role == "out" else given).append(row)
        results = step.op.eager(*given, *sizes.values())
        for row, result in zip(made, results, strict=True):
            row.copy_(result)


def _send_places(launcher: Launcher, driver: Driver, sources: Any, slot: int, frame: Frame) -> None:
    """Write the addresses of a table's rows to the device's memory, without waiting for it."""
    places = frame.tensors[slot]
    host = driver.host_memory(places)
    launcher.write_places(sources, frame.pointers, host)
    places.copy_(host, non_blocking=True)
    if driver.capturing():
        # Each replay of the user's graph reads it again.
        driver.memory.keep(host)
