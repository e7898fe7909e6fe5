"""How the graphs of one model share a budget: all ways to run each, and the quickest that fit.

Forwards run in order and backwards in reverse. So while a graph is worked on, what graphs before it
left in memory is there; in backward also the gradients of parameters of graphs after it, while what
those had saved is gone. That is the form of the layers of one graph (`passes.checkpoints.combine`):
the same walk finds the optimum, over ways to run a graph instead of choices of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..passes.checkpoints.combine import Layers, combine, smallest_peak
from .buckets import Bucket
from .repeats import Repeated
from .ways import Member, Way


@dataclass(frozen=True)
class Share:
    """What is there beside one graph, and how it is to run.

    Attributes:
        others: bytes that other graphs hold while its forward runs.
        later: bytes of gradients of graphs after it, there while its backward runs.
        first: whether no graph runs before it: what goes in then comes from the user.
        way: how it has to run; None: to be planned.
        bucket: the sizes that a way is for; None: to be found.
        calls: how often it runs in a step.
        further: bytes, among `others`, of more sets of parameters that it is called with.
    """

    others: int = 0
    later: int = 0
    first: bool = True
    way: Way | None = None
    bucket: Bucket | None = None
    calls: int = 1
    further: int = 0


def choose(members: Sequence[Member], budget: int) -> list[Share] | None:
    """Shares of all graphs, in the order of their forwards: the quickest that fit; else None.

    Args:
        members: in the order in which they run.
        budget: bytes for all of them together.
    """
    fixed = _fixed(members)
    groups = [Repeated(group) for group in _groups(members)]
    combination = combine(_layers(groups), budget - fixed, bound=False)
    if combination is None:
        return None
    shares: list[Share] = []
    saved = 0
    later = sum(member.all_gradients for member in members)
    for group, (_, number) in zip(groups, combination.chosen, strict=True):
        later -= group.gradients
        for member, way, beside in group.taken(number):
            shares.append(
                Share(
                    fixed - member.pinned + saved + beside.forward,
                    later + max(0, beside.backward - beside.forward),
                    not shares,
                    way,
                    calls=member.calls,
                    further=member.further,
                )
            )
        saved += group.choices[number].saved
    return shares


def smallest(members: Sequence[Member]) -> int:
    """The least bytes in which some ways to run all graphs fit."""
    groups = [Repeated(group) for group in _groups(members)]
    return _fixed(members) + smallest_peak(_layers(groups))[0]


def _fixed(members: Sequence[Member]) -> int:
    return sum(member.pinned + member.further for member in members)


def _groups(members: Sequence[Member]) -> list[list[Member]]:
    """Graphs whose calls alternate together."""
    found: list[list[Member]] = []
    for member in members:
        if found and member.alternates and found[-1][-1].alternates:
            found[-1].append(member)
        else:
            found.append([member])
    return found


def _layers(groups: Sequence[Repeated]) -> Layers:
    later = sum(group.gradients for group in groups)
    found = []
    for group in groups:
        later -= group.gradients
        found.append([replace(c, backward=c.backward + later) for c in group.choices])
    return found
