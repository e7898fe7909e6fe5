"""Plans near the least that a step can use, by what programs were seen to hold.

What a choice costs is estimated from a graph that is not fused yet. Where every byte counts, what
the programs of a plan really hold in each part of the model takes the place of the estimates, and
the model is planned again: choices that held more than was thought lose, those not tried yet are
given the benefit of the doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch.fx import Node

from ..capture.offload import STARTS, WAITS
from ..codegen.timeline import Timeline
from ..passes.checkpoints.combine import Choice, Combination, combine, peak_of, smallest_peak
from ..passes.checkpoints.place import Options
from .step import StepTimeline

Key = tuple[int, int, int]
"""Parts with one key are alike: the kind of the first segment, how many, which choice."""


@dataclass(frozen=True)
class Excess:
    """Bytes that a part's programs held beyond the estimate, in forward and in backward."""

    forward: int
    backward: int


@dataclass
class Figures:
    """The choices for one way to cut a model, with what was seen of them so far.

    Attributes:
        options: the estimates.
        seen: by part (its first segment, and its choice) the most it held beyond them.
    """

    options: Options
    seen: dict[tuple[int, int], Excess] = field(default_factory=dict)

    def copy(self) -> Figures:
        """The same, to learn more."""
        return Figures(self.options, dict(self.seen))

    def layers(self) -> list[list[Choice]]:
        """The choices as `combine` takes them."""
        alike: dict[Key, Excess] = {}
        kinds: dict[int, Excess] = {}
        for (start, number), excess in self.seen.items():
            key = self._key(start, number)
            alike[key] = _least(alike.get(key, excess), excess)
            kind = self.options.segments.kind[start]
            kinds[kind] = _least(kinds.get(kind, Excess(0, 0)), excess)
        found = []
        for start, choices in enumerate(self.options.layers):
            row = []
            for number, choice in enumerate(choices):
                known = (
                    self.seen.get((start, number)),
                    alike.get(self._key(start, number)),
                    kinds.get(self.options.segments.kind[start]),
                )
                best = next((excess for excess in known if excess is not None), None)
                row.append(choice if best is None else _with(choice, best))
            found.append(row)
        return found

    def _key(self, start: int, number: int) -> Key:
        length = self.options.layers[start][number].length
        return self.options.segments.kind[start], length, number if length == 1 else -1

    def see(
        self, combination: Combination, step: StepTimeline, backward: Mapping[str, int]
    ) -> None:
        """Take in what the programs of a plan hold.

        Args:
            combination: what was chosen.
            step: its programs.
            backward: the segment that a node of the backward half works for, by name.
        """
        options = self.options
        step = step.undelayed or step
        # Copies to the host may be waited for where another part is worked on.
        home = options.segments.home.items()
        forward = {n.name: home for n, home in home if n.target not in WAITS}
        extra = step.peak - max(step.forward.peak, step.backward.peak + step.held)
        most = [
            _most(step.forward, step.forward_calls, forward, options.segments.count - 1, extra),
            _most(step.backward, step.backward_calls, backward, 0, extra + step.held),
        ]
        saved = 0
        for start, number in combination.chosen:
            choice = options.layers[start][number]
            segments = range(start, start + choice.length)
            held = [max((by.get(s, 0) for s in segments), default=0) - saved for by in most]
            excess = Excess(
                held[0] - choice.forward if held[0] > 0 else 0,
                held[1] - choice.backward if held[1] > 0 else 0,
            )
            known = self.seen.get((start, number), excess)
            self.seen[start, number] = Excess(
                max(known.forward, excess.forward), max(known.backward, excess.backward)
            )
            saved += choice.saved


def _least(left: Excess, right: Excess) -> Excess:
    return Excess(min(left.forward, right.forward), min(left.backward, right.backward))


def _with(choice: Choice, excess: Excess) -> Choice:
    return replace(
        choice,
        forward=max(choice.saved, choice.forward + excess.forward),
        backward=max(0, choice.backward + excess.backward),
    )


def _most(
    program: Timeline, calls: Mapping[int, str], home: Mapping[str, int], end: int, extra: int
) -> dict[int, int]:
    """The most bytes that are there while each segment is worked on.

    Kernels count to the segment of the next call of an operator: what is made again is made for it.
    Behind the last call it is `end`.
    """
    found: dict[int, int] = {}
    current = end
    for number in reversed(range(program.steps)):
        if number in calls:
            current = home.get(calls[number], current)
        found[current] = max(found.get(current, 0), program.live(number) + extra)
    return found


def homes(nodes: Iterable[Node]) -> dict[str, int]:
    """The segment that nodes of a backward half work for, by name."""
    return {
        node.name: node.meta["segment"]
        for node in nodes
        if "segment" in node.meta and node.target not in STARTS  # they may be anywhere before
    }


def smallest(figures: Sequence[Figures]) -> int:
    """The least bytes that some combination fits, by what is known."""
    return min(smallest_peak(known.layers())[0] for known in figures)


def largest(figures: Sequence[Figures]) -> int:
    """Bytes when everything that helps is kept."""
    return min(
        peak_of(layers, [(number, 0) for number in range(len(layers))])
        for layers in (known.layers() for known in figures)
    )


def quickest(figures: Sequence[Figures], size: int) -> tuple[Options, Combination] | None:
    """The quickest combination within so many bytes by what is known; None when none fits."""
    found = [(known.options, combine(known.layers(), size, bound=False)) for known in figures]
    fitting = [(options, combination) for options, combination in found if combination is not None]
    return min(fitting, key=lambda pair: pair[1].seconds, default=None)


def leanest(figures: Sequence[Figures], size: int) -> tuple[Options, Combination] | None:
    """The combination within so many bytes that saves the fewest; None when none fits."""
    found = []
    for known in figures:
        layers = known.layers()
        combination = combine(layers, size, lean=True)
        if combination is not None:
            saved = sum(layers[start][number].saved for start, number in combination.chosen)
            found.append((saved, combination.seconds, known.options, combination))
    return min(found, key=lambda row: row[:2])[2:] if found else None
