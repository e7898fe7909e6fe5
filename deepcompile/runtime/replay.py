"""Graphs of the device (CUDA graphs): a program's launches captured once and replayed.

A replay reads and writes the addresses of the capture, so it may only stand for a call when that
cannot be noticed. Each of these is checked at each call; where one fails, the call runs as usual:

- An input either lies where it lay at the capture, or is copied to memory of ours. One that moved
  is copied from the next capture on. An input that the graph writes to must lie still.
- Outputs lie in storages that are handed out again only when nobody else holds them: no tensor,
  view or saved activation of the user's can see them. One that is often held at the next call, as
  the loss of a training loop is, is handed out as a copy from then on.
- Intermediates lie in the arena of the stream, which no other call on that stream uses meanwhile.
- The call is on the stream of the capture, and nobody is capturing that stream.

What cannot be captured at all (a result on the CPU, a size that depends on data, collectives,
operators of others that may do something in Python) is known before, or by one watched run.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..codegen.program import ProgramSpec
from ..codegen.steps import ExternStep, KernelStep, TableStep, TensorRef, tensor_refs
from .driver import DeviceGraph, NotCapturable
from .externs import tensor_of
from .triton_binding import Bound, Made
from .triton_kernels import Note
from .triton_program import TritonRunner, plain_output, pool_of

WARM_UP = 2
"""Calls that run as usual before one is captured: libraries set themselves up in them."""
MOST_SIZES = 16
"""For how many combinations of sizes a program is captured."""
MISSES = 4
"""Calls in a row whose inputs have moved, after which the program is captured anew."""
CAPTURES = 4
"""Captures of one program for one combination of sizes, at most."""
HELD = 2
"""Times that an output was still held at the next call, after which it is handed out as a copy."""
MOST_COPIED = 16 << 20
"""Bytes of outputs that are handed out as copies, at most."""
IDLE_MISSES = 64
"""Calls in a row that cannot be a replay, after which a capture is given up."""
_OURS = ("aten", "prims", "deepcompile")


@dataclass
class Capture:
    """One program, captured.

    Attributes:
        fixed: inputs by number that must lie where they lay, and where.
        copied: inputs by number that are copied to a tensor of ours.
        outputs: per output of the program a tensor over static memory, or None: see the program.
        storages: of the static outputs.
        block: of intermediates; None without any.
    """

    graph: DeviceGraph
    stream: int
    fixed: list[tuple[int, int]]
    copied: list[tuple[int, Tensor]]
    outputs: list[_Static | None]
    storages: list[torch.UntypedStorage]
    block: Tensor | None


@dataclass(frozen=True)
class _Static:
    """A tensor over a storage of ours, to be made anew for each call."""

    storage: torch.UntypedStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Static:
        return cls(
            tensor.untyped_storage(),
            int(tensor.storage_offset()),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
            tensor.device,
        )

    @property
    def nbytes(self) -> int:
        return int(self.storage.nbytes())

    def copy(self) -> Tensor:
        """A tensor with memory of its own."""
        made = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return made.copy_(self.tensor())

    def tensor(self) -> Tensor:
        """A tensor over the storage."""
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(self.storage, self.offset, self.shape, self.strides)


@dataclass
class _State:
    """What is known of a program with certain sizes.

    Attributes:
        moving: inputs that lie elsewhere at each call.
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
        self._lock = threading.Lock()
        self._states: dict[tuple[int, ...], _State] = {}
        self._refused = not_capturable(runner.spec)
        self._written = written_inputs(runner.spec)
        self._seen_by_externs = _inputs_of_externs(runner.spec)
        self._tensors = [
            number for number, ref in enumerate(runner.spec.inputs) if isinstance(ref, TensorRef)
        ]
        if self._refused is not None:
            self._refuse(self._refused)

    def __call__(self, args: list[Any]) -> list[Any]:
        if self._refused is not None or self.runner.driver.capturing():
            return self.runner(args)
        with self._lock, torch.no_grad(), self.runner.driver.current():
            return self._call(args)

    @property
    def captured(self) -> int:
        """For how many combinations of sizes there is a capture now."""
        return sum(state.capture is not None for state in self._states.values())

    def _call(self, args: list[Any]) -> list[Any]:
        key = tuple([how(args) for how in self.spec.sizes.values()])
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= MOST_SIZES:
                return self.runner(args)
            state = self._states[key] = _State()
        if state.refused is not None:
            return self.runner(args)
        if state.capture is not None:
            return self._replay_or_run(state, state.capture, args)
        state.calls += 1
        if state.calls <= WARM_UP:
            return self._warm_up(state, args)
        try:
            state.capture = self._capture(state, args)
        except NotCapturable as reason:
            self._give_up(state, str(reason))
            return self.runner(args)
        return self._replay_or_run(state, state.capture, args)

    # -- before a capture -------------------------------------------------------------------------

    def _warm_up(self, state: _State, args: list[Any]) -> list[Any]:
        """Run as usual, and see what would be in the way of a capture."""
        for number, address in self._addresses(args).items():
            if state.addresses.get(number, address) != address:
                state.moving.add(number)
            state.addresses[number] = address
        for number in self._tensors:
            tensor = args[number]
            if tensor is None or tensor.device == self.runner.driver.device:
                continue
            if number in self._seen_by_externs:
                self._give_up(state, f"input {number} lies on {tensor.device}, and ATen reads it")
            state.moving.add(number)
        with _Watch(self.runner.driver.device) as watch:
            results = self.runner(args)
        if watch.elsewhere is not None and state.refused is None:
            self._give_up(state, watch.elsewhere)
        return results

    def _addresses(self, args: list[Any]) -> dict[int, int]:
        return {n: args[n].data_ptr() for n in self._tensors if args[n] is not None}

    def _capture(self, state: _State, args: list[Any]) -> Capture:
        runner, driver = self.runner, self.runner.driver
        bound = runner.bound(args)
        addresses = self._addresses(args)
        state.moving |= {n for n, at in addresses.items() if state.addresses.get(n, at) != at}
        state.addresses = addresses
        state.captures += 1
        for number in self._written & state.moving:
            raise NotCapturable(f"input {number} is written to and lies elsewhere at each call")
        copied = [(n, self._copy_of(args[n])) for n in sorted(state.moving) if n in addresses]
        given = list(args)
        for number, tensor in copied:
            given[number] = tensor
        fixed = [(n, at) for n, at in addresses.items() if n not in state.moving]
        made = [output.empty(driver.device) for output in bound.outputs]
        kept = [self._static_copy(bound, ref) for ref in self.spec.outputs]
        pool = pool_of(driver)
        block = pool.acquire(bound.arena_bytes) if bound.arena_bytes else None
        found: list[Any] = []

        def run() -> None:
            # Intermediates belong to this stream, whichever one a capture is on.
            results = runner.run(bound, list(given), block, made, pool)
            for static, result in zip(kept, results, strict=True):
                if static is not None:
                    static.copy_(result)
                found.append(result)

        try:
            graph = driver.capture(run)
        finally:
            if block is not None:
                pool.release(block)
        outputs: list[_Static | None] = []
        for ref, static, result in zip(self.spec.outputs, kept, found, strict=True):
            if static is not None:
                _require_own_memory(result, given)
                outputs.append(_Static.of(static))
            else:
                outputs.append(_Static.of(result) if self._is_made(ref) else None)
        storages = {o.storage._cdata: o.storage for o in outputs if o is not None}
        self._note("device-graph", graph=self._name, copied=len(copied), fixed=len(fixed))
        return Capture(
            graph, driver.stream(), fixed, copied, outputs, list(storages.values()), block
        )

    def _copy_of(self, tensor: Tensor) -> Tensor:
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.runner.driver.device
        )

    def _static_copy(self, bound: Bound, ref: Any) -> Tensor | None:
        """Memory for an output that ATen allocates, which during a capture is not ours to keep."""
        if not isinstance(ref, TensorRef) or self.spec.slots[ref.slot].storage != "extern":
            return None
        shape = tuple(int(size.evaluate(bound.sizes)) for size in ref.layout.shape)
        strides = tuple(int(stride.evaluate(bound.sizes)) for stride in ref.layout.strides)
        return Made(ref.slot, shape, strides, ref.layout.dtype).empty(self.runner.driver.device)

    def _is_made(self, ref: Any) -> bool:
        return isinstance(ref, TensorRef) and self.spec.slots[ref.slot].storage == "output"

    # -- after it ---------------------------------------------------------------------------------

    def _replay_or_run(self, state: _State, capture: Capture, args: list[Any]) -> list[Any]:
        moved = {n for n, at in capture.fixed if args[n].data_ptr() != at}
        state.moved = state.moved + 1 if moved else 0
        held = _held(capture)
        if not moved and not held and self.runner.driver.stream() == capture.stream:
            pool = pool_of(self.runner.driver)
            if capture.block is None or pool.borrow(capture.block):
                try:
                    state.missed = 0
                    return self._replay(state, capture, args)
                finally:
                    if capture.block is not None:
                        pool.release(capture.block)
        state.missed += 1
        self._note_held(state, capture, held)
        if state.moved >= MISSES or (state.missed >= MISSES and held and held <= state.copied):
            # Who holds an output may keep its memory; the next capture has memory of its own.
            self._capture_anew(state, moved)
        elif state.missed >= IDLE_MISSES:
            reason = f"for {IDLE_MISSES} calls its outputs were still held, or the like"
            self._give_up(state, reason)
        return self.runner(args)

    def _note_held(self, state: _State, capture: Capture, held: set[int]) -> None:
        """Decide for outputs that are held again and again to hand out copies of them."""
        state.held.update(held)
        nbytes = [0 if output is None else output.nbytes for output in capture.outputs]
        for number in held:
            copied = sum(nbytes[n] for n in state.copied | {number})
            if state.held[number] >= HELD and copied <= MOST_COPIED:
                state.copied.add(number)

    def _replay(self, state: _State, capture: Capture, args: list[Any]) -> list[Any]:
        self.runner.check_before()
        for number, tensor in capture.copied:
            tensor.copy_(args[number])
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
        if self._written & state.moving:
            self._give_up(state, "an input that is written to lies elsewhere at each call")
        elif state.captures >= CAPTURES:
            self._give_up(
                state, f"its inputs moved, or its outputs were held, after {CAPTURES} captures"
            )

    def _give_up(self, state: _State, reason: str) -> None:
        state.capture, state.refused = None, reason
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        self._note("device-graph-refused", graph=self._name, reason=reason)


def _held(capture: Capture) -> set[int]:
    """Outputs, by number, whose memory others than the capture can still see."""
    held = {s._cdata for s in capture.storages if not _is_only_ours(s)}
    return {
        number
        for number, output in enumerate(capture.outputs)
        if held and output is not None and output.storage._cdata in held
    }


def _is_only_ours(storage: torch.UntypedStorage) -> bool:
    return torch._C._storage_Use_Count(storage._cdata) == 1


def _require_own_memory(result: Any, given: list[Any]) -> None:
    at = result.untyped_storage().data_ptr()
    for tensor in given:
        if isinstance(tensor, Tensor) and at and tensor.untyped_storage().data_ptr() == at:
            raise NotCapturable("an output is a view that ATen made of an input")


def not_capturable(spec: ProgramSpec) -> str | None:
    """Why no run of a program can be captured, as far as its steps tell, or None."""
    for step in spec.steps:
        if isinstance(step, TableStep):
            return f"the addresses of the rows of {step.op.nest.name} are sent at each call"
        if not isinstance(step, ExternStep):
            continue
        target = step.target
        if not isinstance(target, torch._ops.OpOverload):
            if str(getattr(target, "__module__", "")).startswith("deepcompile"):
                continue
            return f"{step.name} calls {target}, which may do more than device work"
        if target.namespace == "_c10d_functional":
            return f"{step.name} is a collective"
        if target.namespace not in _OURS:
            return f"{target} is an operator of others, which may do more than device work"
        for tag in ("dynamic_output_shape", "data_dependent_output", "cudagraph_unsafe"):
            if getattr(torch.Tag, tag, None) in target.tags:
                return f"{target} is tagged {tag}"
    return None


def written_inputs(spec: ProgramSpec) -> frozenset[int]:
    """Numbers of the inputs that a program writes to."""
    slots: set[int] = set()
    for step in spec.steps:
        if isinstance(step, KernelStep):
            rows, nest = [step.slots], step.op.nest
        elif isinstance(step, TableStep):
            rows, nest = list(step.slots), step.op.nest
        elif isinstance(step, ExternStep):
            if step.out is not None:
                slots.add(step.out)
            if step.target is torch.ops.aten.copy_.default:
                slots |= {ref.slot for ref in tensor_refs(step.args[:1])}
            continue
        else:
            continue
        for row in rows:
            slots |= {
                slot for buffer, slot in zip(nest.buffers, row, strict=True) if buffer.role != "in"
            }
    return frozenset(
        number
        for number, ref in enumerate(spec.inputs)
        if isinstance(ref, TensorRef) and ref.slot in slots
    )


def _inputs_of_externs(spec: ProgramSpec) -> frozenset[int]:
    read = {
        ref.slot
        for step in spec.steps
        if isinstance(step, ExternStep)
        for ref in tensor_refs((step.args, dict(step.kwargs)))
    }
    return frozenset(
        number
        for number, ref in enumerate(spec.inputs)
        if isinstance(ref, TensorRef) and ref.slot in read
    )


class _Watch(TorchDispatchMode):
    """Sees whether ATen makes something on another device, which a graph would not repeat."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.elsewhere: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device != self._device:
                self.elsewhere = f"{func} gives a tensor on {leaf.device}"
        return result
