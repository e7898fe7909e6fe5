"""Running a compiled graph: bind sizes and memory, call the program once, hand out the outputs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd import profiler

from ..codegen.cpp_program import CppProgram
from ..codegen.cpp_table import table_of
from ..codegen.program import ProgramSpec
from ..codegen.steps import (
    ExternStep,
    KernelStep,
    LifetimeStep,
    SizeRef,
    TableStep,
    TensorRef,
    touched,
)
from ..ir.index import Index
from .arena import ALIGNMENT, POOL, ArenaPlan, Lifetime, plan_arena, span
from .build import Library
from .externs import Memory, prepare_extern
from .frame import Frame, Place
from .lifetimes import made_by_steps, prepare_lifetimes
from .profiled import KernelRanges, range_names
from .recycle import OUTPUTS
from .threads import openmp_entry_points

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
_WATCH = ctypes.CFUNCTYPE(None, ctypes.c_int)
_FAILED = 1
MOST_SIZES = 256
"""For how many combinations of sizes a program keeps its layout."""


@dataclass
class Bound:
    """A program bound to sizes: everything that is the same in each call with these sizes.

    Attributes:
        outputs: what a call makes before the first step: slot, shape, strides, dtype and bytes.
        externs: what the steps that call back into Python do, in order.
    """

    sizes: dict[str, int]
    size_array: Any
    arena: ArenaPlan
    arena_bytes: int
    workspace: int
    outputs: list[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype, int]]
    places: list[Place]
    externs: list[Callable[[Memory], None]]
    frames: list[Frame]


class Program:
    """A compiled graph that is called with a list of inputs (which it empties) and returns outputs.

    Args:
        spec: slots and steps.
        code: the source and what its kernels need.
        library: the loaded code.
        threads: a fixed number of threads, or None for that of `torch.get_num_threads()`.
    """

    _boxed_call = True

    def __init__(
        self, spec: ProgramSpec, code: CppProgram, library: Library, threads: int | None = None
    ) -> None:
        self.spec = spec
        self.code = code
        self.library = library
        self.threads = threads
        self._names = list(spec.sizes)
        self._bound: dict[tuple[int, ...], Bound] = {}
        with unset_fake_temporarily():
            self._constants = [
                (slot.number, slot.constant.detach())
                for slot in spec.slots
                if slot.constant is not None
            ]
        self._called_back = [
            step for step in spec.steps if isinstance(step, (ExternStep, LifetimeStep))
        ]
        self._made_by_steps = made_by_steps(spec.steps)
        self._read_by_kernels = frozenset(
            slot
            for step in spec.steps
            if not isinstance(step, ExternStep)
            for slot in touched(step)
        )
        inputs = [(n, ref.slot) for n, ref in enumerate(spec.inputs) if isinstance(ref, TensorRef)]
        # Placeholders come first in a graph, so their slots are the first ones, in order.
        assert [slot for _, slot in inputs] == list(range(len(inputs)))
        self._inputs = [number for number, _ in inputs]
        self._no_inputs = [None] * len(inputs)
        self._held = [s.number for s in spec.slots if s.storage in ("output", "own", "extern")]
        self._tables = [
            (ctypes.c_int64 * len(table))(*table)
            for step in spec.steps
            if isinstance(step, TableStep)
            for table in [table_of(step)]
        ]
        self._table_array = (ctypes.c_void_p * max(len(self._tables), 1))(
            *map(ctypes.addressof, self._tables)
        )
        entry_points = openmp_entry_points()
        handle = library.handle
        if entry_points is not None:
            handle.deepcompile_threads.argtypes = [ctypes.c_void_p] * 3
            handle.deepcompile_threads.restype = None
            handle.deepcompile_threads(*entry_points)
        self._entry = handle.deepcompile_program
        self._entry.restype = ctypes.c_int
        self._entry.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            _CALLBACK,
            ctypes.c_void_p,
            _WATCH,
        ]

    def __call__(self, args: list[Any]) -> list[Any]:
        key = tuple([how(args) for how in self.spec.sizes.values()])
        threads = self.threads or torch.get_num_threads()
        bound = self._bound.get((*key, threads))
        if bound is None:
            if len(self._bound) >= MOST_SIZES:
                self._bound.pop(next(iter(self._bound)), None)
            bound = self._bound[(*key, threads)] = self._bind(key, threads)
        with torch.no_grad():
            return self._run(bound, args, threads)

    def _run(self, bound: Bound, args: list[Any], threads: int) -> list[Any]:
        try:
            frame = bound.frames.pop()
        except IndexError:  # none, or another thread was faster
            frame = Frame(len(self.spec.slots), self._constants)
        tensors, pointers = frame.tensors, frame.pointers
        given = [args[number] for number in self._inputs]
        tensors[: len(given)] = given
        try:
            pointers[: len(given)] = list(map(_address, given))
        except TypeError:  # tokens that order effects are None when the graph runs
            pointers[: len(given)] = [None if t is None else t.data_ptr() for t in given]
        del given
        args.clear()
        for slot, shape, strides, dtype, nbytes in bound.outputs:
            tensor = OUTPUTS.empty(shape, strides, dtype, nbytes)
            tensors[slot] = tensor
            pointers[slot] = tensor.data_ptr()
        block, workspace = None, 0
        if bound.arena_bytes:
            block = POOL.acquire(bound.arena_bytes)
            workspace = frame.bind_arena(block, bound.places, bound.arena.size, POOL)
        failure: list[BaseException] = []
        externs = bound.externs

        def call_extern(number: int) -> int:
            try:
                externs[number](frame)
            except BaseException as error:
                failure.append(error)
                return _FAILED
            return 0

        callback = _CALLBACK(call_extern) if externs else _NO_CALLBACK
        watch = _NO_WATCH
        if profiler._is_profiler_enabled:
            watch = _WATCH(KernelRanges(range_names(self.spec)))
        sizes, tables = bound.size_array, self._table_array
        try:
            status = self._entry(pointers, sizes, workspace, threads, callback, tables, watch)
            if failure:
                raise failure[0]
            if status:
                raise self._index_error(status - 1)
            return [self._output(value, bound, frame) for value in self.spec.outputs]
        finally:
            self._forget(frame)
            if block is not None:
                POOL.release(block)
            bound.frames.append(frame)

    def _index_error(self, number: int) -> IndexError:
        step = self.spec.steps[number]
        assert isinstance(step, KernelStep)
        return step.op.origin.index_error()

    def _forget(self, frame: Frame) -> None:
        """Drop what the call held, so that nothing outlives it."""
        frame.tensors[: len(self._inputs)] = self._no_inputs
        for slot in self._held:
            frame.tensors[slot] = None

    def _output(self, value: Any, bound: Bound, frame: Frame) -> Any:
        if isinstance(value, TensorRef):
            tensor = frame.tensors[value.slot]
            if value.whole:
                return tensor
            sizes = bound.sizes
            return tensor.as_strided(
                [size.evaluate(sizes) for size in value.layout.shape],
                [stride.evaluate(sizes) for stride in value.layout.strides],
                tensor.storage_offset() + value.offset.evaluate(sizes),
            )
        if isinstance(value, SizeRef):
            return int(value.index.evaluate(bound.sizes))
        return value

    # -- binding --------------------------------------------------------------------------------

    def _bind(self, key: tuple[int, ...], threads: int) -> Bound:
        sizes = dict(zip(self._names, key, strict=True))

        def concrete(indices: tuple[Index, ...]) -> tuple[int, ...]:
            return tuple(int(index.evaluate(sizes)) for index in indices)

        lifetimes: list[Lifetime] = []
        slots = []
        outputs = []
        for slot in self.spec.slots:
            if slot.storage not in ("output", "arena") or slot.number in self._made_by_steps:
                continue
            shape, strides = concrete(slot.layout.shape), concrete(slot.layout.strides)
            nbytes = span(shape, strides) * slot.layout.dtype.itemsize
            if slot.storage == "output":
                outputs.append((slot.number, shape, strides, slot.layout.dtype, nbytes))
            else:
                lifetimes.append(Lifetime(nbytes, slot.first, slot.last))
                slots.append((slot.number, shape, strides, slot.layout.dtype))
        arena = plan_arena(lifetimes)
        placed = [
            Place(number, offset, shape, strides, dtype)
            for (number, shape, strides, dtype), offset in zip(slots, arena.offsets, strict=True)
        ]
        per_thread = max((int(size.evaluate(sizes)) for size in self.code.workspace), default=0)
        workspace = per_thread * threads
        total = arena.size + workspace
        array = (ctypes.c_int64 * max(len(key), 1))(*key)
        externs = [
            prepare_extern(step, sizes, self._read_by_kernels)
            if isinstance(step, ExternStep)
            else prepare_lifetimes(step, self.spec.slots, sizes, torch.device("cpu"))
            for step in self._called_back
        ]
        return Bound(
            sizes,
            array,
            arena,
            total + 2 * ALIGNMENT if total or placed else 0,
            workspace,
            outputs,
            placed,
            externs,
            [],
        )

    @property
    def arena_plans(self) -> Mapping[tuple[int, ...], ArenaPlan]:
        """The arena layouts made so far, by sizes and threads."""
        return {key: bound.arena for key, bound in self._bound.items()}

    def kernel_calls(self) -> int:
        """How many kernel calls one run makes."""
        return sum(isinstance(step, (KernelStep, TableStep)) for step in self.spec.steps)


_address = torch.Tensor.data_ptr
_NO_CALLBACK = _CALLBACK(lambda number: _FAILED)
_NO_WATCH = _WATCH()
