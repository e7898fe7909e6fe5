"""A use as a table of numbers: from placements its maker can leave to those its user can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .colours import Colours
from .problem import Problem, Seconds, Value

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transport:
    """What the uses of one class can ask of their tensors; what no option has is not in it.

    Attributes:
        uses: how many there are.
        makers, users: colours of the groups at their ends, and how many of the uses have them.
        sources: placements that some option of the maker leaves the tensor in.
        targets: placements that some option of the user takes it in; -1 where one does not.
        source_of: by option of the maker, its index in `sources`.
        target_of: by option of the user, its index in `targets`.
        seconds: of one move from a source to a target; inf where it does not exist.
        table: of one move from any placement of the tensor to any other.
        values: how many tensors of the class there are.
        space: uses of one tensor in one space share their moves.
    """

    uses: int
    makers: tuple[Ints, Ints]
    users: tuple[Ints, Ints]
    sources: Ints
    targets: Ints
    source_of: Ints
    target_of: Ints
    seconds: Seconds
    table: Seconds
    values: int
    space: tuple[int, bool]

    @property
    def moves(self) -> int:
        """How many placements the tensor has."""
        return len(self.table)

    @property
    def codes(self) -> Ints:
        """Moves as numbers, [source, target]: `source * moves + target`."""
        return self.sources[:, None] * self.moves + self.targets[None, :]

    @property
    def is_free(self) -> bool:
        """Whether it costs nothing whatever is chosen, so that a program can do without it."""
        return not self.seconds.any()


def transports_of(problem: Problem, colours: Colours) -> list[Transport]:
    """Of all classes of uses, in their order."""
    # Many tables are the same few tuples.
    known: dict[tuple[int, ...], tuple[Ints, Ints]] = {}

    def unique(placements: tuple[int, ...]) -> tuple[Ints, Ints]:
        if placements not in known:
            known[placements] = np.unique(np.array(placements, np.int64), return_inverse=True)
        return known[placements]

    if not problem.uses:
        return []
    maker = np.array([value.maker for value in problem.values], np.int64)
    used = np.array([use.value for use in problem.uses], np.int64)
    user = np.array([use.user for use in problem.uses], np.int64)
    makers = _ends(colours.uses, colours.groups[maker[used]])
    users = _ends(colours.uses, colours.groups[user])
    members = np.bincount(colours.values)
    made = []
    for index, first in enumerate(np.unique(colours.uses, return_index=True)[1]):
        use = problem.uses[first]
        value = problem.values[use.value]
        sources, source_of = unique(value.made)
        targets, target_of = unique(use.taken)
        seconds = _seconds(value, sources, targets)
        values = int(colours.values[use.value])
        count = int(makers[index][1].sum())
        space = values, use.backward and not value.keeps_moved
        tables = sources, targets, source_of, target_of, seconds
        size = value.moves, int(members[values])
        made.append(Transport(count, makers[index], users[index], *tables, *size, space))
    return made


def _ends(classes: Ints, colours: Ints) -> list[tuple[Ints, Ints]]:
    """By class, the colours that occur in it and how often."""
    width = int(colours.max()) + 1
    codes, counts = np.unique(classes * width + colours, return_counts=True)
    starts = np.searchsorted(codes // width, np.arange(1, int(classes.max()) + 1))
    parts = zip(np.split(codes % width, starts), np.split(counts, starts), strict=True)
    return list(parts)


def _seconds(value: Value, sources: Ints, targets: Ints) -> Seconds:
    seconds = value.moves[sources[:, None], targets[None, :]]
    seconds[:, targets < 0] = 0.0
    seconds[sources[:, None] == targets[None, :]] = 0.0
    return seconds


def spaces_of(transports: Sequence[Transport]) -> dict[tuple[int, bool], list[int]]:
    """By space the transports in it."""
    made: dict[tuple[int, bool], list[int]] = {}
    for index, transport in enumerate(transports):
        made.setdefault(transport.space, []).append(index)
    return made
