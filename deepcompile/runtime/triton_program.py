"""Running a compiled graph with Triton kernels: allocate, launch and call ATen, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..codegen.program import ProgramSpec
from ..codegen.steps import ExternStep, KernelStep, SizeRef, TableStep, TensorRef, touched
from ..codegen.triton_kernel import TritonKernel, emit_triton
from ..codegen.triton_program import TritonProgram as TritonCode
from ..codegen.triton_schedule import leaner
from ..codegen.triton_table import TritonTable, chunks_of, places_of
from ..ir.interpret import flat_storage
from .externs import as_traced, prepare_extern, tensor_of
from .triton_flags import Flags
from .triton_interpreter import install
from .triton_launch import launch, launch_table, load_source

Action = Callable[["Running"], None]
Note = Callable[..., None]


class Running:
    """The tensors of one call by slot; `pointers` is what calls of ATen also fill, unused here."""

    def __init__(self, count: int) -> None:
        self.tensors: list[Any] = [None] * count
        self.pointers: list[Any] = [None] * count


@dataclass
class Bound:
    """A program bound to sizes: what to do at each step, and which slots die after it."""

    sizes: dict[str, int]
    actions: list[Action]
    dying: list[tuple[int, ...]]


class TritonRunner:
    """A compiled graph that is called with a list of inputs (which it empties) and returns outputs.

    Args:
        spec: slots and steps.
        code: its kernels.
        device: where the kernels run; the CPU under Triton's interpreter.
        folder: where generated modules are kept.
        note: told about each kernel that the device's compiler refuses; that one runs as ATen ops.
    """

    _boxed_call = True

    def __init__(
        self, spec: ProgramSpec, code: TritonCode, device: torch.device, folder: Path, note: Note
    ) -> None:
        if device.type == "cpu":
            install()
        self.spec = spec
        self.device = device
        self._folder = folder
        self._note = note
        # What is known better once it has met the device replaces what was emitted.
        self._kernels: list[TritonKernel | TritonTable | str] = list(code.kernels)
        self._modules: dict[int, ModuleType] = {}
        self._bound: dict[tuple[int, ...], Bound] = {}
        with unset_fake_temporarily():
            self._constants = [
                (slot.number, slot.constant.detach().to(device))
                for slot in spec.slots
                if slot.constant is not None
            ]
            self._flags = Flags(len(spec.kernels), device, self._index_error)
        self._checks = any(isinstance(k, TritonKernel) and k.checks() for k in code.kernels)
        self._read_by_kernels = frozenset(
            slot
            for step in spec.steps
            if isinstance(step, (KernelStep, TableStep))
            for slot in touched(step)
        )
        self._inputs = [
            (number, ref.slot)
            for number, ref in enumerate(spec.inputs)
            if isinstance(ref, TensorRef)
        ]

    def __call__(self, args: list[Any]) -> list[Any]:
        key = tuple([how(args) for how in self.spec.sizes.values()])
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(dict(zip(self.spec.sizes, key, strict=True)))
        self._flags.before_call()
        running = Running(len(self.spec.slots))
        tensors = running.tensors
        for number, constant in self._constants:
            tensors[number] = constant
        for number, slot in self._inputs:
            tensor = args[number]
            if (
                slot in self._read_by_kernels
                and tensor is not None
                and tensor.device != self.device
            ):
                # A number in a tensor of the CPU, which ATen takes on any device.
                tensor = tensor.to(self.device)
            tensors[slot] = tensor
        args.clear()
        with torch.no_grad(), self._on_device():
            for action, dying in zip(bound.actions, bound.dying, strict=True):
                action(running)
                for slot in dying:
                    tensors[slot] = None
            if self._checks:
                self._flags.after_call()
            return [self._output(value, bound.sizes, tensors) for value in self.spec.outputs]

    def _on_device(self) -> AbstractContextManager[None]:
        """Triton launches on the current device."""
        if self.device.type != "cuda" or torch.cuda.current_device() == self.device.index:
            return nullcontext()
        return torch.cuda.device(self.device)

    def _output(self, value: Any, sizes: Mapping[str, int], tensors: list[Any]) -> Any:
        if isinstance(value, TensorRef):
            return tensor_of(value, sizes)(tensors)
        if isinstance(value, SizeRef):
            return int(value.index.evaluate(sizes))
        return value

    # -- binding --------------------------------------------------------------------------------

    def _bind(self, sizes: dict[str, int]) -> Bound:
        actions: list[Action] = []
        dying: list[tuple[int, ...]] = []
        made: set[int] = set()
        for number, step in enumerate(self.spec.steps):
            fresh = [
                self._allocation(slot, sizes)
                for slot in sorted(touched(step) - made)
                if self.spec.slots[slot].storage in ("arena", "output")
            ]
            made |= touched(step)
            if isinstance(step, KernelStep):
                actions.append(self._kernel(step, sizes, fresh))
            elif isinstance(step, TableStep):
                actions.append(self._table(step, fresh))
            elif isinstance(step, ExternStep):
                actions.append(_after(fresh, prepare_extern(step, sizes, self._read_by_kernels)))
            else:
                raise AssertionError(f"{type(step).__name__} is for the CPU")
            dying.append(
                tuple(
                    slot
                    for slot in touched(step)
                    if self.spec.slots[slot].storage in ("arena", "extern")
                    and self.spec.slots[slot].last == number
                )
            )
        kept = {ref.slot for ref in self.spec.outputs if isinstance(ref, TensorRef)}
        dying = [tuple(slot for slot in slots if slot not in kept) for slots in dying]
        return Bound(sizes, actions, dying)

    def _allocation(self, number: int, sizes: Mapping[str, int]) -> Action:
        layout = self.spec.slots[number].layout
        shape = [int(size.evaluate(sizes)) for size in layout.shape]
        strides = [int(stride.evaluate(sizes)) for stride in layout.strides]
        dtype, device = layout.dtype, self.device

        def allocate(running: Running) -> None:
            running.tensors[number] = torch.empty_strided(
                shape, strides, dtype=dtype, device=device
            )

        return allocate

    def _kernel(self, step: KernelStep, sizes: Mapping[str, int], fresh: list[Action]) -> Action:
        eager = self._as_aten(step, sizes)
        if not isinstance(self._kernels[step.function], TritonKernel):
            return eager
        known = {name: sizes[name] for name in step.sizes}
        places = []
        for buffer, slot, offset in zip(
            step.op.nest.buffers, step.slots, step.offsets, strict=True
        ):
            itemsize = self.spec.slots[slot].layout.dtype.itemsize
            places.append((buffer.name, slot, int(offset.evaluate(sizes)) // itemsize))
        allocate = _all(fresh)

        def run(running: Running) -> None:
            kernel = self._kernels[step.function]
            if not isinstance(kernel, TritonKernel):
                eager(running)
                return
            allocate(running)
            tensors = {name: _from(running.tensors[slot], offset) for name, slot, offset in places}
            try:
                module = self._module(step.function, kernel.source)
                if launch(kernel, module, tensors, known, self._flags.of(step.function)):
                    self._make_leaner(step.function, kernel)
                self._flags.after_launch()
            except IndexError:
                raise
            except Exception as error:
                if not _from_compiler(error):
                    raise
                self._refuse(step, error)
                eager(running)

        return run

    def _table(self, step: TableStep, fresh: list[Action]) -> Action:
        """All rows in one launch; their addresses are sent again only when they have changed."""
        table = self._kernels[step.function]
        if not isinstance(table, TritonTable):
            return _after(fresh, partial(_rows_as_aten, step))
        allocate, slots = _all(fresh), sorted(touched(step))
        chunks = self._sent(chunks_of(step.extents, table.block))
        sent: list[int] = []
        places = self._sent(sent)

        def run(running: Running) -> None:
            nonlocal sent, places
            allocate(running)
            table = self._kernels[step.function]
            if not isinstance(table, TritonTable):
                _rows_as_aten(step, running)
                return
            addresses = {slot: running.tensors[slot].data_ptr() for slot in slots}
            wanted = places_of(step, addresses)
            if wanted != sent:
                sent, places = wanted, self._sent(wanted)
            try:
                module = self._module(step.function, table.source)
                launch_table(table, module, places, chunks)
            except Exception as error:
                if not _from_compiler(error):
                    raise
                self._refuse(step, error)
                _rows_as_aten(step, running)

        return run

    def _sent(self, numbers: list[int]) -> Tensor:
        """Numbers in the device's memory, without waiting for it."""
        pinned = self.device.type == "cuda"
        tensor = torch.tensor(numbers, dtype=torch.int64, pin_memory=pinned)
        return tensor.to(self.device, non_blocking=True)

    def _module(self, function: int, source: str) -> ModuleType:
        module = self._modules.get(function)
        if module is None:
            module = self._modules[function] = load_source(source, self._folder)
        return module

    def _make_leaner(self, function: int, kernel: TritonKernel) -> None:
        """Take a schedule that needs fewer registers from the next call on, while there is one."""
        schedule = leaner(kernel.schedule)
        if schedule is None:
            return
        name = kernel.functions[0].name
        self._kernels[function] = emit_triton(kernel.kernel, schedule, name)
        del self._modules[function]
        self._note("spilled", kernel=kernel.kernel.name, schedule=str(schedule))

    def _refuse(self, step: KernelStep | TableStep, error: Exception) -> None:
        """Run a kernel as ATen ops from now on."""
        reason = f"Triton refused kernel {step.op.nest.name}: {type(error).__name__}: {error}"
        self._kernels[step.function] = reason[:2000]
        self._note("fallback", kernel=step.op.nest.name, reason=reason[:2000])

    def _index_error(self, kernel: int) -> IndexError:
        return self.spec.kernels[kernel].origin.index_error()

    def _as_aten(self, step: KernelStep, sizes: Mapping[str, int]) -> Action:
        """The same step by the ATen ops that the kernel was made of."""
        given = [tensor_of(ref, sizes) for ref in step.given]
        numbers = [sizes[name] for name in step.sizes]
        out = [
            slot
            for buffer, slot in zip(step.op.nest.buffers, step.slots, strict=True)
            if buffer.role == "out"
        ]
        layouts = [self.spec.slots[slot].layout for slot in out]
        strides = [tuple(int(s.evaluate(sizes)) for s in layout.strides) for layout in layouts]

        def run(running: Running) -> None:
            results = step.op.eager(*(get(running.tensors) for get in given), *numbers)
            for slot, result, stride in zip(out, results, strides, strict=True):
                layout = (tuple(result.shape), stride, result.dtype)
                running.tensors[slot] = as_traced(result, layout)

        return run


def _rows_as_aten(step: TableStep, running: Running) -> None:
    """A table step by the ATen ops that its kernel was made of, one row after another."""
    nest = step.op.nest
    for slots, offsets, extent in zip(step.slots, step.offsets, step.extents, strict=True):
        sizes = dict.fromkeys(nest.sizes, extent)
        given: list[Tensor] = []
        made: list[Tensor] = []
        for buffer, slot, offset in zip(nest.buffers, slots, offsets, strict=True):
            tensor = running.tensors[slot]
            shape = tuple(int(size.evaluate(sizes)) for size in buffer.shape)
            first = tensor.storage_offset() + offset // tensor.element_size()
            row = tensor.as_strided(shape, (1,) * len(shape), first)
            (made if buffer.role == "out" else given).append(row)
        results = step.op.eager(*given, *sizes.values())
        for row, result in zip(made, results, strict=True):
            row.copy_(result)


def _from(tensor: Tensor, offset: int) -> Tensor:
    """A tensor that begins `offset` elements behind the first of `tensor`, on the same memory."""
    flat = flat_storage(tensor) if offset or tensor.device.type == "cpu" else tensor
    return flat[offset:] if offset else flat


def _all(actions: list[Action]) -> Action:
    def run(running: Running) -> None:
        for action in actions:
            action(running)

    return run


def _after(first: list[Action], then: Callable[[Any], None]) -> Action:
    def run(running: Running) -> None:
        for action in first:
            action(running)
        then(running)

    return run


def _from_compiler(error: Exception) -> bool:
    """Whether an error comes from building a kernel rather than from running it."""
    module = type(error).__module__
    return module.startswith("triton") and "runtime.interpreter" not in module
