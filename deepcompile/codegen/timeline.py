"""How much memory a program holds at each of its steps: a simulation of the runtime, exact.

What is counted is what the runtime asks an allocator for, one storage at a time, and the inputs
until the program lets go of them. Not seen are:

- memory that an operator of ATen takes and gives back inside its call, unless the caller knows it
  (`scratch`),
- what libraries keep for themselves,
- an input whose storage is larger than its tensor, or shared with another input: each input counts
  the bytes between its first and last element,
- references that others have to an input, unless the caller says so with `pinned_inputs`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

from .arena_plan import Lifetime, plan_arena
from .lifetimes import returned, slot_bytes
from .steps import LifetimeStep, ProgramSpec, Slot, TensorRef

Role = Literal["input", "output", "transient", "extern", "constant", "arena", "scratch"]

ARENA, SCRATCH = -1, -2
"""Numbers for what is no slot: the block of small intermediates, memory inside of a call."""


@dataclass(frozen=True)
class Span:
    """One storage and when it is there.

    Attributes:
        slot: the slot it was made for, `ARENA` or `SCRATCH`. Views of it have no span of their own.
        nbytes: what the allocator gives for it.
        first, last: the steps, both inclusive, in which it is there. -1 is before the first step,
            and the number of steps is behind the last one, when the program has returned.
    """

    slot: int
    role: Role
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Timeline:
    """The storages of a program over its steps 0 to `steps` - 1, and before (-1) and behind them.

    A step that takes or lets go of memory counts with what is there after it, which is never less
    than what was there while it did so and not before it.
    """

    spans: tuple[Span, ...]
    steps: int

    @cached_property
    def _live(self) -> list[int]:
        change = [0] * (self.steps + 3)
        for span in self.spans:
            change[span.first + 1] += span.nbytes
            change[span.last + 2] -= span.nbytes
        return list(accumulate(change))

    def live(self, step: int) -> int:
        """Bytes that are there in a step; -1 and `steps` are allowed."""
        if not -1 <= step <= self.steps:
            raise IndexError(f"step {step} of a program of {self.steps}")
        return self._live[step + 1]

    @cached_property
    def peak(self) -> int:
        """The most bytes that are there at once."""
        return max(self._live)

    @cached_property
    def peak_step(self) -> int:
        """The first step in which that many are there."""
        return self._live.index(self.peak) - 1

    def owners(self, step: int) -> list[Span]:
        """What is there in a step, the largest first."""
        found = [span for span in self.spans if span.first <= step <= span.last]
        return sorted(found, key=lambda span: (-span.nbytes, span.slot))


def timeline(
    spec: ProgramSpec,
    sizes: Mapping[str, int],
    *,
    granule: int = 1,
    pinned_inputs: Collection[int] = (),
    workspace: int = 0,
    scratch: Mapping[int, int] | None = None,
) -> Timeline:
    """What a run of a program with these sizes holds, step by step.

    It holds for programs with lifetime steps, and for the C++ runtime also for those without:
    there all outputs are made before the first step, and what is no output is held until the end.

    Args:
        granule: bytes of which an allocator gives multiples only.
        pinned_inputs: numbers of inputs that others hold and count: they have no spans.
        workspace: bytes that the runtime adds to the block of small intermediates, for the threads
            of kernels and for alignment. A pool keeps that block between calls, so it is there
            before and behind a program too.
        scratch: bytes that steps, by number, take and give back inside their calls.
    """
    end = len(spec.steps)
    taken: dict[int, int] = {}
    dropped: dict[int, int] = {}
    for number, step in enumerate(spec.steps):
        if isinstance(step, LifetimeStep):
            taken |= dict.fromkeys(step.allocate, number)
            dropped |= dict.fromkeys(step.release, number)
    kept = returned(spec)
    pinned = {
        ref.slot
        for number, ref in enumerate(spec.inputs)
        if number in pinned_inputs and isinstance(ref, TensorRef)
    }

    # A storage is there until the last of its views is let go of.
    until: dict[int, int] = {}
    for slot in reversed(spec.slots):
        last = end if slot.number in kept else dropped.get(slot.number, end) - 1
        until[slot.number] = last = max(last, until.get(slot.number, -1))
        if slot.view_of is not None:
            until[slot.view_of] = max(last, until.get(slot.view_of, -1))

    def span(slot: Slot) -> Span:
        nbytes = _rounded(slot_bytes(slot, sizes), granule)
        last = until[slot.number]
        if slot.storage == "input":
            return Span(slot.number, "input", nbytes, -1, last)
        if slot.storage == "constant":
            return Span(slot.number, "constant", nbytes, -1, end)
        if slot.storage == "extern":
            role: Role = "output" if slot.number in kept else "extern"
            return Span(slot.number, role, nbytes, slot.first, last)
        role = "output" if slot.storage == "output" else "transient"
        return Span(slot.number, role, nbytes, taken.get(slot.number, 0), last)

    spans = [
        span(slot)
        for slot in spec.slots
        if slot.storage != "arena" and slot.view_of is None and slot.number not in pinned
    ]
    small = [
        Lifetime(slot_bytes(slot, sizes), slot.first, slot.last)
        for slot in spec.slots
        if slot.storage == "arena"
    ]
    block = _rounded(plan_arena(small).size + workspace, granule)
    if block:
        spans.append(Span(ARENA, "arena", block, -1, end))
    for number, nbytes in (scratch or {}).items():
        spans.append(Span(SCRATCH, "scratch", _rounded(nbytes, granule), number, number))
    return Timeline(tuple(spans), end)


def _rounded(nbytes: int, granule: int) -> int:
    return -(-nbytes // granule) * granule
