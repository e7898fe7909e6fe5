"""Running a compiled graph with Triton kernels: one walk over a launch table a call."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..codegen.program import ProgramSpec
from ..codegen.steps import SizeRef, TensorRef
from ..codegen.triton_kernel import TritonKernel
from ..codegen.triton_program import TritonProgram as TritonCode
from ..options import Options
from .arena import ArenaPool
from .driver import Driver
from .externs import tensor_of
from .frame import Frame
from .launcher import CALLBACK, Launcher
from .triton_binding import Binder, Bound
from .triton_flags import Flags
from .triton_kernels import Note, TritonKernels
from .triton_tuning import Tuner

MOST_SIZES = 256
"""For how many combinations of sizes a program keeps its table."""
_FAILED = 1


class Running:
    """One call at a time: its memory, and the way back from C into Python."""

    def __init__(self, frame: Frame, bound: Bound) -> None:
        self.frame = frame
        self.failure: BaseException | None = None
        self.callback = CALLBACK(self._call)
        self._calls = bound.calls
        self._general = bound.general

    def _call(self, number: int) -> int:
        try:
            if number < 0:
                self._general[-1 - number]()
            else:
                self._calls[number](self.frame)
        except BaseException as error:
            self.failure = error
            return _FAILED
        return 0


class TritonRunner:
    """A compiled graph that is called with a list of inputs (which it empties) and returns outputs.

    Args:
        spec: slots and steps.
        code: its kernels.
        driver: the device.
        options: `cache*`, `strict`, `tune` and `deterministic` are used.
        folder: where generated modules are kept; None: only for this process.
        note: told about each kernel that the device's compiler refuses; that one runs as ATen ops.

    Raises:
        CompilerMissing, BuildFailed: see `Launcher`.
    """

    _boxed_call = True

    def __init__(
        self,
        spec: ProgramSpec,
        code: TritonCode,
        driver: Driver,
        options: Options,
        folder: Path | None,
        note: Note,
    ) -> None:
        self.spec = spec
        self.driver = driver
        self.kernels = TritonKernels(
            spec.kernels, code.kernels, driver, folder, note, options.strict
        )
        self._launcher = Launcher(options, note)
        self._tuner: Tuner | None = None
        if options.tune == "measure" and not options.deterministic:
            self._tuner = Tuner(self.kernels, driver, self._launcher, folder, note)
        self._bound: dict[tuple[int, ...], Bound] = {}
        with unset_fake_temporarily(), driver.current():
            self.constants = [
                (slot.number, slot.constant.detach().to(driver.device))
                for slot in spec.slots
                if slot.constant is not None
            ]
            self._flags = Flags(len(spec.kernels), driver, self._index_error)
        self._checks = any(isinstance(k, TritonKernel) and k.checks() for k in code.kernels)
        self._inputs = [
            (number, ref.slot)
            for number, ref in enumerate(spec.inputs)
            if isinstance(ref, TensorRef)
        ]
        self._of_a_call = [
            slot.number for slot in spec.slots if slot.storage not in ("constant", "arena")
        ]

    def __call__(self, args: list[Any]) -> list[Any]:
        bound = self.bound(args)
        self.check_before()
        with torch.no_grad(), self.driver.current():
            # A capture of the user's keeps the addresses of its memory: it gets a pool of its own,
            # which takes from the capture's memory and ends with this call.
            own = ArenaPool(self.driver.device) if self.driver.capturing() else None
            pool = own or self.driver.memory.pool(self.driver.stream())
            block = pool.acquire(bound.arena_bytes) if bound.arena_bytes else None
            try:
                made = [output.empty(self.driver.device) for output in bound.outputs]
                results = self.run(bound, args, block, made, pool)
            finally:
                if block is not None:
                    pool.release(block)
                if own is not None:
                    own.clear()
            self.check()
            return results

    def bound(self, args: list[Any]) -> Bound:
        """The program for the sizes of these inputs."""
        key = tuple([how(args) for how in self.spec.sizes.values()])
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) >= MOST_SIZES:
                self._bound.pop(next(iter(self._bound)), None)
            bound = self._bound[key] = self._bind(dict(zip(self.spec.sizes, key, strict=True)))
        return bound

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Compile the kernels for sizes that are likely, if all of them are known."""
        if all(name in sizes for name in self.spec.sizes):
            known = {name: sizes[name] for name in self.spec.sizes}
            self._bound[tuple(known.values())] = self._bind(known)

    def _bind(self, sizes: dict[str, int]) -> Bound:
        with unset_fake_temporarily(), self.driver.current():
            return Binder(
                self.spec,
                self.kernels,
                self._flags,
                self.driver,
                self._launcher,
                self._tuner,
                sizes,
            ).bind()

    def check_before(self) -> None:
        """Raise what index checks of earlier runs have found, as far as it is known."""
        if self._checks:
            self._flags.before_call()

    def check(self) -> None:
        """After a run: send for what its index checks have found, or raise it where it is known."""
        if self._checks:
            self._flags.after_call()

    def run(
        self,
        bound: Bound,
        args: list[Any],
        block: Tensor | None,
        made: list[Tensor],
        pool: ArenaPool,
    ) -> list[Any]:
        """Run everything on the current stream, in memory that the caller gives.

        Args:
            args: the inputs; emptied.
            block: at least `bound.arena_bytes`, used by nobody else on this stream meanwhile.
            made: an empty tensor for each of `bound.outputs`.
            pool: where `block` is from.
        """
        try:
            running = bound.idle.pop()
        except IndexError:  # none, or another thread was faster
            running = Running(Frame(bound.slots, self.constants), bound)
        frame = running.frame
        try:
            self._place(frame, bound, args, block, made, pool)
            error = ctypes.c_int()
            status = self._launcher.walk(
                bound.table,
                frame.pointers,
                self.driver.stream(),
                self.driver.launch,
                running.callback,
                ctypes.byref(error),
            )
            if running.failure is not None:
                raise running.failure
            if status:
                raise self.driver.error(error.value)
            return [self._output(value, bound.sizes, frame) for value in self.spec.outputs]
        finally:
            running.failure = None
            for slot in self._of_a_call:
                frame.tensors[slot] = None
            bound.idle.append(running)

    def _place(
        self,
        frame: Frame,
        bound: Bound,
        args: list[Any],
        block: Tensor | None,
        made: list[Tensor],
        pool: ArenaPool,
    ) -> None:
        """Point the frame at this call's memory."""
        tensors, pointers = frame.tensors, frame.pointers
        device = self.driver.device
        for number, slot in self._inputs:
            tensor = args[number]
            if tensor is None:  # tokens that order effects are None when the graph runs
                pointers[slot] = None
                continue
            if tensor.device != device and slot in bound.read_by_kernels:
                # A number in a tensor of the CPU, which ATen takes on any device.
                tensor = tensor.to(device)
            tensors[slot] = tensor
            pointers[slot] = tensor.data_ptr()
        args.clear()
        for output, tensor in zip(bound.outputs, made, strict=True):
            tensors[output.slot] = tensor
            pointers[output.slot] = tensor.data_ptr()
        if block is not None:
            frame.bind_arena(block, bound.places, bound.arena.size, pool)

    def _output(self, value: Any, sizes: Mapping[str, int], frame: Frame) -> Any:
        if isinstance(value, TensorRef):
            return tensor_of(value, sizes)(frame.tensors)
        return plain_output(value, sizes)

    def _index_error(self, kernel: int) -> IndexError:
        return self.spec.kernels[kernel].origin.index_error()


def plain_output(value: Any, sizes: Mapping[str, int]) -> Any:
    """An output that is no tensor."""
    return int(value.index.evaluate(sizes)) if isinstance(value, SizeRef) else value
