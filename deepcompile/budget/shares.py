"""How the graphs of one model share a budget: all ways to run each, and the quickest that fit.

Forwards run in order and backwards in reverse. So while a graph is worked on, what graphs before it
left in memory is there; in backward also the gradients of parameters of graphs after it, while what
those had saved is gone. That is the form of the layers of one graph (`passes.checkpoints.combine`):
the same walk finds the optimum, over ways to run a graph instead of choices of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..passes.checkpoints.combine import Choice, Layers, combine, smallest_peak
from .buckets import Bucket
from .step import StepTimeline


@dataclass(frozen=True)
class Way:
    """One way to run the step of one graph; bytes beside what is pinned.

    Attributes:
        rung: the number of the planner's plan; None: torch's split.
        follow_lifetimes: whether its programs take and let go of memory as they run.
        saved: what is there from the end of forward on.
        forward, backward: the most that lives in each.
        seconds: what computing again takes.
    """

    rung: int | None
    follow_lifetimes: bool
    saved: int
    forward: int
    backward: int
    seconds: float = 0.0

    def is_no_more_than(self, other: Way) -> bool:
        """Whether it fits wherever the other does."""
        return (
            self.saved <= other.saved
            and self.forward <= other.forward
            and self.backward <= other.backward
        )


def way_of(
    step: StepTimeline, rung: int | None, follow_lifetimes: bool, seconds: float = 0.0
) -> Way:
    """The way that a simulated step is."""
    return Way(rung, follow_lifetimes, step.saved, step.forward_peak, step.backward_peak, seconds)


@dataclass(frozen=True)
class Member:
    """A graph as one of several.

    Attributes:
        pinned: bytes of its parameters and of the state of their optimizer.
        gradients: bytes of the gradients of its parameters, there from its backward on.
        ways: to run it.
    """

    pinned: int
    gradients: int
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Share:
    """What is there beside one graph, and how it is to run.

    Attributes:
        others: bytes that other graphs hold while its forward runs.
        later: bytes of gradients of graphs after it, there while its backward runs.
        first: whether no graph runs before it: what goes in then comes from the user.
        way: how it has to run; None: to be planned.
        bucket: the sizes that a way is for; None: to be found.
    """

    others: int = 0
    later: int = 0
    first: bool = True
    way: Way | None = None
    bucket: Bucket | None = None


def choose(members: Sequence[Member], budget: int) -> list[Share] | None:
    """Shares of all graphs, in the order of their forwards: the quickest that fit; else None.

    Args:
        members: in the order in which they run.
        budget: bytes for all of them together.
    """
    fixed = sum(member.pinned for member in members)
    combination = combine(_layers(members), budget - fixed, bound=False)
    if combination is None:
        return None
    shares, saved = [], 0
    later = sum(member.gradients for member in members)
    for member, (_, number) in zip(members, combination.chosen, strict=True):
        later -= member.gradients
        way = member.ways[number]
        shares.append(Share(fixed - member.pinned + saved, later, member is members[0], way))
        saved += way.saved
    return shares


def smallest(members: Sequence[Member]) -> int:
    """The least bytes in which some ways to run all graphs fit."""
    return sum(member.pinned for member in members) + smallest_peak(_layers(members))[0]


def _layers(members: Sequence[Member]) -> Layers:
    later = sum(member.gradients for member in members)
    found = []
    for member in members:
        later -= member.gradients
        found.append(
            [Choice(w.saved, w.forward, w.backward + later, w.seconds) for w in member.ways]
        )
    return found
