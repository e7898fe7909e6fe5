"""Graphs that run several times in a step, each time in the same way, as one choice for all calls.

Of a graph that runs `n` times in a row the last forward has beside it what the others saved; and
while the backward of a call runs, calls before it still hold what they saved, and those after it
have left gradients. Where calls of several graphs alternate, each of them may be the last: beside
it is all that the group saved, but for its own. That may be a little more than there really is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..passes.checkpoints.combine import Choice
from .ways import Member, Way

_MOST = 256
"""Combinations that are kept of a group of graphs whose calls alternate."""


@dataclass(frozen=True)
class Beside:
    """Bytes that other calls of a group hold while one runs forward, and backward."""

    forward: int
    backward: int


@dataclass(frozen=True)
class _Picked:
    """One way for each graph of a group.

    Attributes:
        ways: their numbers.
        saved: bytes of all calls when the last forward has ended.
        most: the most that all calls together hold during backward, saved tensors and gradients.
        forward, backward: what the call with the highest moment holds beyond `saved`, `most`.
        seconds: of all calls.
    """

    ways: tuple[int, ...]
    saved: int
    most: int
    forward: int
    backward: int
    seconds: float

    @property
    def peak(self) -> int:
        """Bytes at the highest moment."""
        return max(self.saved + self.forward, self.most + self.backward)

    def costs(self) -> tuple[float, ...]:
        """All that should be little."""
        return self.saved, self.most, self.forward, self.backward, self.seconds

    def and_(self, other: _Picked) -> _Picked:
        """The same for the graphs of both."""
        return _Picked(
            self.ways + other.ways,
            self.saved + other.saved,
            self.most + other.most,
            max(self.forward, other.forward),
            max(self.backward, other.backward),
            self.seconds + other.seconds,
        )


class Repeated:
    """Graphs whose calls alternate, or one graph, with all their calls in a step.

    Args:
        members: in the order of their first calls.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self.gradients = sum(member.all_gradients for member in members)

    @cached_property
    def choices(self) -> list[Choice]:
        """As parts of a step: bytes beside what is pinned, seconds of all calls."""
        return [
            Choice(p.saved, p.saved + p.forward, p.most + p.backward, p.seconds)
            for p in self._picked
        ]

    def taken(self, number: int) -> Iterator[tuple[Member, Way, Beside]]:
        """What a choice means for each graph."""
        picked = self._picked[number]
        for member, at in zip(self.members, picked.ways, strict=True):
            way = member.ways[at]
            others = picked.most - _most(member, way, member.calls)
            yield (
                member,
                way,
                Beside(picked.saved - way.saved, others + _most(member, way, member.calls - 1)),
            )

    @cached_property
    def _picked(self) -> list[_Picked]:
        found, *others = [_alone(member) for member in self.members]
        for other in others:
            found = _best([left.and_(right) for left in found for right in other])
        return found


def _alone(member: Member) -> list[_Picked]:
    found = []
    for number, way in enumerate(member.ways):
        most = _most(member, way, member.calls)
        backward = way.backward + _most(member, way, member.calls - 1) - most
        saved, seconds = member.calls * way.saved, member.calls * way.seconds
        found.append(_Picked((number,), saved, most, way.forward - way.saved, backward, seconds))
    return found


def _most(member: Member, way: Way, calls: int) -> int:
    """The most that so many calls hold together during backward.

    Each call turns what it saved into gradients; those of a set of parameters are there once.
    """
    sets = min(calls, member.copies)
    return max(calls * way.saved, (calls - sets) * way.saved + sets * member.gradients)


def _best(found: Sequence[_Picked]) -> list[_Picked]:
    """Those that no other undercuts in everything; of too many, some from the leanest on."""
    found = sorted(found, key=lambda picked: (sum(picked.costs()), picked.ways))
    costs = np.array([picked.costs() for picked in found])
    left = np.ones(len(found), bool)
    for number in range(len(found)):
        if left[number]:
            left[number + 1 :] &= ~(costs[number + 1 :] >= costs[number]).all(axis=1)
    kept = [picked for picked, stays in zip(found, left, strict=True) if stays]
    kept.sort(key=lambda picked: picked.peak)
    return [kept[at] for at in sorted({round(i) for i in np.linspace(0, len(kept) - 1, _MOST)})]
