"""How long the slots of a program are needed, and steps that give them memory only so long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .arena_plan import span
from .in_flight import keep_until_waited
from .steps import Layout, LifetimeStep, ProgramSpec, Slot, Step, tensor_refs, touched

LARGE = 64 << 10
"""Bytes from which on a step of its own, a call back into Python, is worth it."""


def settle_lifetimes(spec: ProgramSpec) -> None:
    """Find from which to which step each slot is needed, and what has to outlive the program."""
    for number, step in enumerate(spec.steps):
        for slot in sorted(touched(step)):
            entry = spec.slots[slot]
            entry.first = number if entry.first < 0 else entry.first
            entry.last = number
    keep_until_waited(spec)
    outputs = returned(spec)
    # A view that ATen made keeps the memory it is over; later slots are views of earlier ones.
    for above in reversed(spec.slots):
        if above.view_of is None:
            continue
        below = spec.slots[above.view_of]
        below.last = max(below.last, above.last)
        if above.number in outputs and below.storage == "arena":
            below.storage = "output"


def returned(spec: ProgramSpec) -> frozenset[int]:
    """The slots whose memory a program hands out, as they are or under a view."""
    found = {ref.slot for ref in tensor_refs(spec.outputs)}
    for slot in reversed(spec.slots):
        if slot.view_of is not None and slot.number in found:
            found.add(slot.view_of)
    return frozenset(found)


def slot_bytes(slot: Slot, sizes: Mapping[str, int]) -> int:
    """Bytes from the first element of a slot to behind its last.

    Raises:
        KeyError: when a size is not in `sizes`.
    """
    return _layout_bytes(slot.layout, sizes)


def _layout_bytes(layout: Layout, sizes: Mapping[str, int]) -> int:
    shape = tuple(int(size.evaluate(sizes)) for size in layout.shape)
    strides = tuple(int(stride.evaluate(sizes)) for stride in layout.strides)
    return span(shape, strides) * layout.dtype.itemsize


@dataclass
class _Change:
    """A lifetime step being put together, before step `before` of the program without any."""

    before: int
    allocate: list[int] = field(default_factory=list)
    release: list[int] = field(default_factory=list)
    early: int = 0  # bytes of slots that are needed a little later only


def add_lifetime_steps(spec: ProgramSpec, hints: Mapping[str, int]) -> None:
    """Let a program take memory when it is first needed and let go of it when it no longer is.

    Large intermediates leave the arena. Memory is taken right before the first step that touches
    it, and let go of right after the last one: inputs, intermediates and what ATen made alike, but
    not what the program returns. Small slots wait for each other: what is let go of comes up to
    `LARGE` bytes in all too late, and outputs are taken up to as much too early.

    Args:
        spec: changed in place.
        hints: the sizes by which a slot counts as small. One of unknown size counts as large.
    """
    nbytes = {slot.number: _likely_bytes(slot.layout, hints) for slot in spec.slots}
    for slot in spec.slots:
        if slot.storage == "arena" and slot.first >= 0 and nbytes[slot.number] >= LARGE:
            slot.storage = "own"
    changes = _changes(spec, nbytes)
    steps: list[Step] = []
    moved: list[int] = []
    for number in range(len(spec.steps) + 1):
        if (change := changes.get(number)) is not None:
            steps.append(LifetimeStep(tuple(change.allocate), tuple(change.release)))
        moved.append(len(steps))
        steps += spec.steps[number : number + 1]
    spec.steps = steps
    for slot in spec.slots:
        if slot.first >= 0:
            slot.first, slot.last = moved[slot.first], moved[slot.last]


def _changes(spec: ProgramSpec, nbytes: Mapping[int, int]) -> dict[int, _Change]:
    """What to take and let go of, by the step before which that happens."""
    end = len(spec.steps)
    kept = returned(spec)
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for slot in spec.slots:
        if slot.storage in ("own", "output"):
            begins.setdefault(slot.first if slot.first >= 0 else end, []).append(slot.number)
        if slot.storage in ("own", "input", "extern") and slot.number not in kept:
            ends.setdefault(slot.last + 1, []).append(slot.number)
    found: dict[int, _Change] = {}
    latest: _Change | None = None
    dead: list[int] = []
    for number in range(end + 1):
        dead += ends.get(number, ())
        freed = sum(nbytes[slot] for slot in dead if spec.slots[slot].view_of is None)
        needed = begins.get(number, [])
        size = sum(nbytes[slot] for slot in needed)
        if needed and freed < LARGE and latest is not None and latest.early + size < LARGE:
            latest.allocate += needed
            latest.early += size
        elif needed or (freed >= LARGE and number < end):
            # Behind the last step, everything is let go of without being told.
            latest = found[number] = _Change(number, needed, dead)
            dead = []
    return found


def is_large(layout: Layout, hints: Mapping[str, int]) -> bool:
    """Whether a tensor of the sizes expected, or of sizes nobody expects, counts as large."""
    return _likely_bytes(layout, hints) >= LARGE


def _likely_bytes(layout: Layout, hints: Mapping[str, int]) -> int:
    try:
        return _layout_bytes(layout, hints)
    except KeyError:
        return LARGE
