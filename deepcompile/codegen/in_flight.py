"""Collectives in a program read and write memory of ours between their launch and their wait."""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.collectives import is_launch, is_wait
from .steps import ExternStep, ProgramSpec, tensor_refs, touched


def keep_until_waited(spec: ProgramSpec) -> None:
    """Let slots live until the collectives that read or write them have been waited for.

    What one still reads when the program ends lies in no memory that programs share.
    """
    owners = _owners(spec)
    # By slot of a result that has not been waited for: all slots of its collective.
    pending: dict[int, set[int]] = {}
    for number, step in enumerate(spec.steps):
        if not isinstance(step, ExternStep):
            continue
        if is_wait(step.target):
            for ref in tensor_refs(step.args):
                _settle(spec, pending.pop(owners[ref.slot], ()), number)
        elif is_launch(step.target):
            made = [slot for slot in step.results if slot is not None]
            pending |= dict.fromkeys((owners[slot] for slot in made), touched(step))
    for slots in pending.values():
        _settle(spec, slots, len(spec.steps) - 1)
        for slot in (spec.slots[owners[number]] for number in slots):
            if slot.storage == "arena":
                slot.storage = "output"


def _settle(spec: ProgramSpec, slots: Iterable[int], number: int) -> None:
    for slot in slots:
        spec.slots[slot].last = max(spec.slots[slot].last, number)


def _owners(spec: ProgramSpec) -> list[int]:
    """For each slot the one whose memory it is."""
    found: list[int] = []
    for slot in spec.slots:
        found.append(slot.number if slot.view_of is None else found[slot.view_of])
    return found
