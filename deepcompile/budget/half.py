"""What the program of one half of a step holds, by the names and storages of the joint graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..capture.offload import OFFLOAD_START, OFFLOAD_WAIT, RELOAD_WAIT
from ..codegen.steps import (
    ExternStep,
    KernelStep,
    ProgramSpec,
    TableStep,
    TensorRef,
    touched,
)
from ..codegen.timeline import Span, Timeline


@dataclass(frozen=True)
class Half:
    """The program of forward or of backward.

    Attributes:
        timeline: what it holds on the device.
        undelayed: the same if copies to and from the host took no time.
        labels: names for its slots.
        calls: by step, the node of the graph that it calls an operator for.
    """

    timeline: Timeline
    undelayed: Timeline
    labels: dict[int, str]
    calls: dict[int, str]


def half_of(
    spec: ProgramSpec,
    names: Sequence[str],
    found: Timeline,
    storages: Mapping[str, tuple[str, int]],
) -> Half:
    """The half that a program is.

    Args:
        names: of its inputs.
        found: all that it holds, on the device or the host.
        storages: for tensors of forward, the name and the bytes of their storage.
    """
    hosted = _hosted(spec, names)
    labels = _labels(spec, names)
    spans = [span for span in found.spans if span.slot not in hosted]
    undelayed = _undelayed(spec, spans)
    return Half(
        replace(found, spans=_by_storage(spans, labels, storages)),
        replace(found, spans=_by_storage(undelayed, labels, storages)),
        labels,
        calls_of(spec),
    )


def calls_of(spec: ProgramSpec) -> dict[int, str]:
    """By step, the node of the graph that it calls an operator for."""
    return {at: step.name for at, step in enumerate(spec.steps) if isinstance(step, ExternStep)}


def _undelayed(spec: ProgramSpec, spans: Sequence[Span]) -> list[Span]:
    """The spans as they would be if copies to and from the host took no time."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    waited_for: set[int] = set()
    for number, step in enumerate(spec.steps):
        if isinstance(step, ExternStep) and step.target is OFFLOAD_WAIT:
            waited_for.add(_storage(spec, step.args[1].slot))
            continue
        if isinstance(step, ExternStep) and step.target is RELOAD_WAIT:
            first[_storage(spec, step.args[0].slot)] = number
        last |= {_storage(spec, slot): number for slot in touched(step)}
    found = []
    for span in spans:
        if span.slot in waited_for and span.last < len(spec.steps):
            span = replace(span, last=min(span.last, last[span.slot]))
        found.append(replace(span, first=first.get(span.slot, span.first)))
    return found


def _by_storage(
    spans: Sequence[Span], labels: Mapping[int, str], storages: Mapping[str, tuple[str, int]]
) -> tuple[Span, ...]:
    """Inputs that are views of one storage as one: it is there until the last of them goes."""
    found: list[Span] = []
    together: dict[str, int] = {}
    for span in spans:
        storage = storages.get(labels.get(span.slot, "")) if span.role == "input" else None
        if storage is None:
            found.append(span)
            continue
        base, nbytes = storage
        if base not in together:
            together[base] = len(found)
            found.append(replace(span, nbytes=nbytes))
            continue
        known = found[together[base]]
        found[together[base]] = replace(known, last=max(known.last, span.last))
    return tuple(found)


def _labels(spec: ProgramSpec, names: Sequence[str]) -> dict[int, str]:
    """A name for each slot: of the input, or of the step that makes it."""
    found: dict[int, str] = {}
    for name, ref in zip(names, spec.inputs, strict=True):
        if isinstance(ref, TensorRef):
            found[ref.slot] = name
    for step in spec.steps:
        name = step.op.nest.name if isinstance(step, KernelStep | TableStep) else ""
        name = step.name if isinstance(step, ExternStep) else name
        for slot in touched(step):
            found.setdefault(slot, name)
    return found


def _hosted(spec: ProgramSpec, names: Sequence[str]) -> set[int]:
    """Slots whose memory is the host's."""
    found = {
        slot
        for step in spec.steps
        if isinstance(step, ExternStep) and step.target is OFFLOAD_START
        for slot in step.results
        if slot is not None
    }
    for name, ref in zip(names, spec.inputs, strict=True):
        if name.startswith("offload") and isinstance(ref, TensorRef):
            found.add(ref.slot)
    return found


def _storage(spec: ProgramSpec, slot: int) -> int:
    """The slot whose memory a slot is."""
    above = spec.slots[slot].view_of
    return slot if above is None else _storage(spec, above)
