"""Graphs of the device (CUDA graphs): a program's launches captured once and replayed.

A replay reads and writes the addresses of the capture, so it may only stand for a call when that
cannot be noticed. Each of these is checked at each call; where one fails, the call runs as usual:

- An input either lies where it lay at the capture, or is copied to memory of ours. One that moved
  is copied from the next capture on. An input that the graph writes to must lie still.
- Outputs lie in storages that are handed out again only when nobody else holds them: no tensor,
  view, saved activation or storage object of the user's can see them. One that is often held at
  the next call, as the loss of a training loop is, is handed out as a copy from then on.
- Intermediates lie in the arena of the stream, which no other call on that stream uses meanwhile.
- The call is on the stream of the capture, nobody is capturing that stream, and the settings that
  libraries look at (deterministic algorithms, kinds of attention) are those of the capture.

Not seen is `Tensor.record_stream`: who lets go of an output while another stream still reads it has
to wait for that stream first.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..codegen.steps import ExternStep, TensorRef
from .capturable import (
    Watch,
    inputs_of_externs,
    library_settings,
    not_capturable,
    written_inputs,
)
from .driver import DeviceGraph, NotCapturable
from .externs import tensor_of
from .overlapping import Overlapping, copy_as_it_lies, empty_as
from .recycle import OwnStorage
from .triton_binding import Bound, Made
from .triton_kernels import Note
from .triton_program import TritonRunner, plain_output

WARM_UP = 2
"""Calls that run as usual before one is captured: libraries set themselves up in them."""
WAITS = 2
"""Calls more that a capture waits for inputs to lie still, as those from other captures soon do."""
MOST_SIZES = 16
"""For how many combinations of sizes and settings a program is captured."""
MISSES = 4
"""Calls in a row whose inputs have moved, after which the program is captured anew."""
CAPTURES = 4
"""Captures of one program for one combination of sizes, at most."""
HELD = 2
"""Times that an output was still held at the next call, after which it is handed out as a copy."""
MOST_COPIED = 16 << 20
"""Bytes of outputs that are handed out as copies, at most."""
IDLE_MISSES = 1024
"""Calls in a row that cannot be a replay, after which a capture is given up."""


@dataclass(frozen=True)
class _Static:
    """An output over a storage of ours, to be made anew for each call."""

    storage: OwnStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """A tensor over the storage."""
        return self.storage.tensor(self.dtype, self.offset, self.shape, self.strides)

    def copy(self) -> Tensor:
        """A tensor with memory of its own."""
        mine = self.tensor()
        return copy_as_it_lies(empty_as(mine), mine)


@dataclass(frozen=True)
class Capture:
    """One program, captured.

    Attributes:
        fixed: inputs by number that must lie where they lay, and where.
        copied: inputs by number that are copied to a tensor of ours.
        outputs: per output of the program a tensor over static memory, or None: see the program.
        storages: of the static outputs, each with its address and bytes.
        block: of intermediates; None without any.
    """

    graph: DeviceGraph
    stream: int
    fixed: list[tuple[int, int]]
    copied: list[tuple[int, Tensor]]
    outputs: list[_Static | None]
    storages: list[tuple[OwnStorage, int, int]]
    block: Tensor | None

    def held(self) -> set[int]:
        """Outputs, by number, whose memory others can still see."""
        held = {id(storage) for storage, _, _ in self.storages if not storage.is_only_ours()}
        if not held:
            return set()
        outputs = enumerate(self.outputs)
        return {n for n, output in outputs if output is not None and id(output.storage) in held}

    def is_whole(self) -> bool:
        """Whether no storage was resized by whoever had it."""
        return all(
            storage.address == address and storage.nbytes == nbytes
            for storage, address, nbytes in self.storages
        )


@dataclass
class _State:
    """What is known of a program with certain sizes.

    Attributes:
        addresses: of the inputs, at the last call before a capture.
        moving: inputs that are to be copied.
        held: how often each output was still held at the next call.
        copied: outputs that are handed out as copies.
        moved, missed: calls in a row that were no replay for the inputs' sake, or any.
    """

    calls: int = 0
    addresses: dict[int, int] = field(default_factory=dict)
    moving: set[int] = field(default_factory=set)
    held: Counter[int] = field(default_factory=Counter)
    copied: set[int] = field(default_factory=set)
    captures: int = 0
    moved: int = 0
    missed: int = 0
    capture: Capture | None = None
    refused: str | None = None


class ReplayingRunner:
    """A `TritonRunner` that is captured and replayed where that is safe.

    Args:
        runner: the program.
        name: of the graph, for events.
        note: told "device-graph" at each capture, and "device-graph-refused" with the reason.
    """

    _boxed_call = True

    def __init__(self, runner: TritonRunner, name: str, note: Note) -> None:
        self.runner = runner
        self.spec = runner.spec
        self._name = name
        self._note = note
        self._lock = threading.RLock()
        self._states: dict[Any, _State] = {}
        self._refused = not_capturable(runner.spec)
        self._written = written_inputs(runner.spec)
        self._calls_libraries = any(isinstance(step, ExternStep) for step in runner.spec.steps)
        self._read_by_externs = inputs_of_externs(runner.spec)
        self._tensors = [
            number for number, ref in enumerate(runner.spec.inputs) if isinstance(ref, TensorRef)
        ]
        if self._refused is not None:
            self._refuse(self._refused)

    def __call__(self, args: list[Any]) -> list[Any]:
        if self._refused is None:
            with self.runner.driver.current(), torch.no_grad():
                if not self.runner.driver.capturing():
                    with self._lock:
                        results = self._call(args)
                    if results is not None:
                        return results
        return self.runner(args)

    def _call(self, args: list[Any]) -> list[Any] | None:
        """The results of a replay or a watched run; None: run as usual."""
        sizes = tuple([how(args) for how in self.spec.sizes.values()])
        key = (sizes, library_settings()) if self._calls_libraries else sizes
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= MOST_SIZES:
                return None
            state = self._states[key] = _State()
        if state.refused is not None:
            return None
        if state.capture is None:
            state.calls += 1
            if state.calls <= WARM_UP:
                return self._warm_up(state, args)
            if not self._lies_still(state, args) and state.calls <= WARM_UP + WAITS:
                return None
            try:
                state.capture = self._capture(state, args)
            except (NotCapturable, Overlapping, torch.OutOfMemoryError) as reason:
                self._give_up(state, str(reason))
                return None
        return self._replay_or_miss(state, state.capture, args)

    # -- before a capture -------------------------------------------------------------------------

    def _warm_up(self, state: _State, args: list[Any]) -> list[Any]:
        """Run as usual, and see what would be in the way of a capture."""
        state.addresses = self._addresses(args)
        for number in self._tensors:
            tensor = args[number]
            if tensor is None or tensor.device == self.runner.driver.device:
                continue
            if number in self._read_by_externs:
                self._give_up(state, f"input {number} lies on {tensor.device}, and ATen reads it")
            state.moving.add(number)
        with Watch(self.runner.driver.device) as watch:
            results = self.runner(args)
        if watch.elsewhere is not None and state.refused is None:
            self._give_up(state, watch.elsewhere)
        return results

    def _addresses(self, args: list[Any]) -> dict[int, int]:
        return {n: args[n].data_ptr() for n in self._tensors if args[n] is not None}

    def _lies_still(self, state: _State, args: list[Any]) -> bool:
        """Whether all inputs that will not be copied lie where they lay at the last call."""
        before, now = state.addresses, self._addresses(args)
        state.addresses = now
        moved = {n for n, at in now.items() if before.get(n, at) != at} - state.moving
        if moved and state.calls > WARM_UP + WAITS:
            state.moving |= moved
        return not moved

    def _capture(self, state: _State, args: list[Any]) -> Capture:
        runner, driver = self.runner, self.runner.driver
        bound = runner.bound(args)
        state.captures += 1
        unsteady = sorted(self._written & state.moving)
        if unsteady:
            raise NotCapturable(f"input {unsteady[0]} is written to and moves from call to call")
        copied = [
            (number, empty_as(args[number], driver.device))
            for number in sorted(state.moving & state.addresses.keys())
        ]
        given = list(args)
        for number, tensor in copied:
            given[number] = copy_as_it_lies(tensor, args[number])
        fixed = [(n, at) for n, at in state.addresses.items() if n not in state.moving]
        made = [output.empty(driver.device) for output in bound.outputs]
        kept = [self._static_copy(bound, ref) for ref in self.spec.outputs]
        pool = driver.memory.pool(driver.stream())
        block = pool.acquire(bound.arena_bytes) if bound.arena_bytes else None
        found: list[Any] = []

        def run() -> None:
            # Intermediates belong to this stream, whichever one a capture is on.
            results = runner.run(bound, list(given), block, made, pool)
            for static, result in zip(kept, results, strict=True):
                if static is not None:
                    copy_as_it_lies(static, result)
                found.append(result)

        try:
            graph = driver.capture(run)
        finally:
            if block is not None:
                pool.release(block)
        storages: dict[int, OwnStorage] = {}
        outputs = [
            self._static(storages, ref, static, result, given)
            for ref, static, result in zip(self.spec.outputs, kept, found, strict=True)
        ]
        self._note("device-graph", graph=self._name, copied=len(copied), fixed=len(fixed))
        seen = [(storage, storage.address, storage.nbytes) for storage in storages.values()]
        return Capture(graph, driver.stream(), fixed, copied, outputs, seen, block)

    def _static_copy(self, bound: Bound, ref: Any) -> Tensor | None:
        """Memory for an output that ATen allocates, which during a capture is not ours to keep."""
        if not isinstance(ref, TensorRef) or self.spec.slots[ref.slot].storage != "extern":
            return None
        shape = tuple(int(size.evaluate(bound.sizes)) for size in ref.layout.shape)
        strides = tuple(int(stride.evaluate(bound.sizes)) for stride in ref.layout.strides)
        return Made(ref.slot, shape, strides, ref.layout.dtype).empty(self.runner.driver.device)

    def _static(
        self,
        storages: dict[int, OwnStorage],
        ref: Any,
        static: Tensor | None,
        result: Any,
        given: list[Any],
    ) -> _Static | None:
        """How to hand out an output that lies in memory of ours; None for all others."""
        if static is not None:
            _require_own_memory(result, given)
            result = static
        elif not isinstance(ref, TensorRef) or self.spec.slots[ref.slot].storage != "output":
            return None
        storage = OwnStorage(result)
        storage = storages.setdefault(storage.id, storage)
        shape, offset = tuple(result.shape), int(result.storage_offset())
        return _Static(storage, offset, shape, result.stride(), result.dtype)

    # -- after it ---------------------------------------------------------------------------------

    def _replay_or_miss(self, state: _State, capture: Capture, args: list[Any]) -> list[Any] | None:
        moved = {n for n, at in capture.fixed if args[n].data_ptr() != at}
        state.moved = state.moved + 1 if moved else 0
        held = capture.held()
        driver = self.runner.driver
        if not moved and not held and driver.stream() == capture.stream and capture.is_whole():
            pool = driver.memory.pool(capture.stream)
            if capture.block is None or pool.borrow(capture.block):
                try:
                    state.missed = 0
                    return self._replay(state, capture, args)
                finally:
                    if capture.block is not None:
                        pool.release(capture.block)
        state.missed += 1
        self._note_held(state, capture, held)
        # Who holds an output may keep its memory, or have resized it: the next capture has its own.
        kept = state.missed >= MISSES and held and held <= state.copied
        if state.moved >= MISSES or kept or not capture.is_whole():
            self._capture_anew(state, moved)
        elif state.missed >= IDLE_MISSES:
            self._give_up(state, f"for {IDLE_MISSES} calls its outputs were held, or the like")
        return None

    def _note_held(self, state: _State, capture: Capture, held: set[int]) -> None:
        """Decide for outputs that are held again and again to hand out copies of them."""
        state.held.update(held)
        nbytes = [0 if output is None else output.storage.nbytes for output in capture.outputs]
        for number in held:
            copied = sum(nbytes[n] for n in state.copied | {number})
            if state.held[number] >= HELD and copied <= MOST_COPIED:
                state.copied.add(number)

    def _replay(self, state: _State, capture: Capture, args: list[Any]) -> list[Any]:
        self.runner.check_before()
        for number, tensor in capture.copied:
            copy_as_it_lies(tensor, args[number])
        capture.graph.replay()
        results = []
        for number, (static, value) in enumerate(
            zip(capture.outputs, self.spec.outputs, strict=True)
        ):
            if static is None:
                results.append(self._other(value, args))
            else:
                results.append(static.copy() if number in state.copied else static.tensor())
        args.clear()
        self.runner.check()
        return results

    def _other(self, value: Any, args: list[Any]) -> Any:
        """An output that no storage of ours holds: a number, an input, a constant."""
        sizes = self.runner.bound(args).sizes
        if not isinstance(value, TensorRef):
            return plain_output(value, sizes)
        tensors = dict(self.runner.constants) | {
            ref.slot: args[number]
            for number, ref in enumerate(self.spec.inputs)
            if isinstance(ref, TensorRef)
        }
        return tensor_of(value, sizes)(tensors)  # type: ignore[arg-type]

    def _capture_anew(self, state: _State, moved: set[int]) -> None:
        """Let go of a capture; what has moved will be copied by the next one."""
        state.capture = None
        state.moving |= moved
        state.moved = state.missed = 0
        state.addresses = {}
        if self._written & state.moving:
            self._give_up(state, "an input that is written to moves from call to call")
        elif state.captures >= CAPTURES:
            reason = f"after {CAPTURES} captures its inputs still moved, or outputs were held"
            self._give_up(state, reason)

    def _give_up(self, state: _State, reason: str) -> None:
        state.capture, state.refused = None, reason
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        self._note("device-graph-refused", graph=self._name, reason=reason)


def _require_own_memory(result: Any, given: list[Any]) -> None:
    at = result.untyped_storage().data_ptr()
    for tensor in given:
        if isinstance(tensor, Tensor) and at and tensor.untyped_storage().data_ptr() == at:
            raise NotCapturable("an output is a view that ATen made of an input")
