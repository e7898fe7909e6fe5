"""The ways in which graphs can run that share a budget, by what they hold and cost."""

from __future__ import annotations

from dataclasses import dataclass

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
        calls: how often it runs in a step.
        copies: how many sets of parameters it is called with.
        further: bytes pinned for all of them but the first.
        alternates: whether its calls alternate with those of other graphs. Of such graphs those
            next to each other are taken together.
    """

    pinned: int
    gradients: int
    ways: tuple[Way, ...]
    calls: int = 1
    copies: int = 1
    further: int = 0
    alternates: bool = False

    @property
    def all_gradients(self) -> int:
        """Bytes of the gradients of all parameters that it is called with in a step."""
        return self.gradients * min(self.calls, self.copies)
