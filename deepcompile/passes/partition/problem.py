"""The choice of placements as numbers: what the solver sees of a graph. Knows no graph, no torch.

A *group* is what is decided together (a node of the graph, or a parameter), by one of its options.
An option says in which placement the group leaves each tensor that it makes and in which it takes
each tensor that it uses. Where a user takes a tensor in another placement than its maker leaves it,
the tensor moves, once for each placement that is asked for: all users of one placement share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor.

    Attributes:
        maker: the group that makes it.
        made: by option of the maker, which placement (an index into `moves`) it is left in.
        moves: seconds from one placement to another, [from, to]; 0 on the diagonal, inf where a
            move does not exist.
        keeps_moved: whether what was moved for a forward user serves backward users too. Where
            not, the tensor as it was made is what lives from forward to backward, and backward
            users move it anew.
    """

    maker: int
    made: tuple[int, ...]
    moves: Seconds
    keeps_moved: bool = True


@dataclass(frozen=True)
class Use:
    """One group takes one tensor.

    Attributes:
        value: index of the tensor.
        user: the group.
        taken: by option of the user, which placement it takes the tensor in; -1 for an option
            that does not take it.
        backward: whether the user belongs to the backward pass.
    """

    value: int
    user: int
    taken: tuple[int, ...]
    backward: bool = False


@dataclass(frozen=True, eq=False)
class MemoryRow:
    """Bytes on a rank at one moment, which must not exceed a limit.

    Attributes:
        limit: bytes.
        bytes: by group, the bytes that each of its options holds at that moment.
        fixed: bytes that are there whatever is chosen.
        name: for messages: "parameters", "end of forward".
    """

    limit: float
    bytes: Mapping[int, npt.NDArray[np.float64]]
    fixed: float = 0.0
    name: str = ""


@dataclass(frozen=True, eq=False)
class Problem:
    """What there is to choose, and what each choice costs.

    Attributes:
        costs: by group, the seconds of each of its options; inf forbids an option.
        values: the tensors.
        uses: who takes which.
        rows: limits of memory.
        labels: by group, for messages; never read by the solver's choices.
        alike: sets of groups with equal numbers of options that must choose the same option (a
            parameter and what its gradient lands on are one group already; this is for the rest).
    """

    costs: Sequence[Seconds]
    values: Sequence[Value]
    uses: Sequence[Use]
    rows: Sequence[MemoryRow] = ()
    labels: Sequence[str] = ()
    alike: Sequence[tuple[int, ...]] = ()


@dataclass(frozen=True)
class Solution:
    """A choice for every group, and how good it is known to be.

    Attributes:
        options: by group, the option that was chosen.
        seconds: what it costs by the problem's numbers, moves included.
        bound: no choice costs less (the relaxation's optimum).
        held: by memory row, bytes.
        method: "lp", "milp", "descent": what found it.
        colours: how many different groups the solver saw.
        timings: seconds of its steps, by name: never read by a decision.
        fallback: why no linear program was solved, where "descent" found it; else empty.
    """

    options: tuple[int, ...]
    seconds: float
    bound: float
    held: tuple[float, ...] = ()
    method: str = ""
    colours: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    fallback: str = ""

    @property
    def gap(self) -> float:
        """How much more than the bound it costs, relative; 0 where both are nothing."""
        return 0.0 if self.seconds <= self.bound else self.seconds / max(self.bound, 1e-30) - 1.0


def seconds_of(problem: Problem, options: Sequence[int]) -> float:
    """What a choice costs: of the options, and of each move that somebody needs, once."""
    total = sum(float(costs[option]) for costs, option in zip(problem.costs, options, strict=True))
    moved: set[tuple[int, int, bool]] = set()
    for use in problem.uses:
        value = problem.values[use.value]
        source, target = value.made[options[value.maker]], use.taken[options[use.user]]
        if target >= 0 and source != target:
            moved.add((use.value, target, use.backward))
    for index, target, backward in moved:
        value = problem.values[index]
        if backward and value.keeps_moved and (index, target, False) in moved:
            continue
        total += float(value.moves[value.made[options[value.maker]], target])
    return total


def held_of(row: MemoryRow, options: Sequence[int]) -> float:
    """Bytes of a memory row under a choice."""
    return row.fixed + sum(float(held[options[group]]) for group, held in row.bytes.items())
