"""A smaller problem with the same choices: groups that choose alike are one, hopeless options go.

An option is hopeless where it costs inf, or where a tensor that it makes or takes cannot move
between it and any option left at the other end (arc consistency, Mackworth 1977).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import PartitionError
from .problem import MemoryRow, Problem, Use, Value
from .transport import Floats, Ints

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Simplified:
    """What is left to choose.

    Attributes:
        problem: of merged groups and the options that are left; nothing has to be alike in it.
        group_of: by original group, its group.
        kept: by group, the original indices of its options.
    """

    problem: Problem
    group_of: Ints
    kept: Sequence[Ints]

    def expand(self, options: Sequence[int]) -> tuple[int, ...]:
        """The choice for all original groups."""
        return tuple(int(self.kept[group][options[group]]) for group in self.group_of)

    def contract(self, options: Sequence[int]) -> tuple[int, ...]:
        """The choice nearest to one for all original groups; for a hopeless option the first."""
        made = [0] * len(self.kept)
        for group, option in zip(self.group_of, options, strict=True):
            found = np.flatnonzero(self.kept[group] == option)
            if found.size:
                made[group] = int(found[0])
        return tuple(made)


def simplify(problem: Problem) -> Simplified:
    """Merges what must be alike and drops hopeless options.

    Raises:
        PartitionError: a group has no option left; names it, and what it contradicts.
    """
    group_of = _merged(problem)
    merged = _merge(problem, group_of)
    kept = [np.flatnonzero(mask) for mask in _hopeful(merged)]
    if all(len(some) == len(costs) for some, costs in zip(kept, merged.costs, strict=True)):
        return Simplified(merged, group_of, kept)
    return Simplified(only(merged, kept), group_of, kept)


def _merged(problem: Problem) -> Ints:
    """By group, the number of the set of groups that choose as it does."""
    least = list(range(len(problem.costs)))

    def find(group: int) -> int:
        while least[group] != group:
            group = least[group]
        return group

    for groups in problem.alike:
        if len({len(problem.costs[group]) for group in groups}) > 1:
            raise ValueError(f"groups {groups} must choose alike, but have different options")
        for group in groups[1:]:
            one, other = sorted((find(groups[0]), find(group)))
            least[other] = one
    return np.unique([find(group) for group in least], return_inverse=True)[1].astype(np.int64)


def _merge(problem: Problem, group_of: Ints) -> Problem:
    if not problem.alike:
        return problem
    costs: list[Floats] = []
    labels: list[str] = []
    for group, own in zip(group_of, problem.costs, strict=True):
        if group == len(costs):  # sets are numbered as their first groups come
            costs.append(own)
        else:
            costs[group] = costs[group] + own
    if problem.labels:
        labels = [problem.labels[at] for at in np.unique(group_of, return_index=True)[1]]
    values = [
        Value(int(group_of[value.maker]), value.made, value.moves, value.keeps_moved)
        for value in problem.values
    ]
    uses = [
        Use(use.value, int(group_of[use.user]), use.taken, use.backward) for use in problem.uses
    ]
    rows = []
    for row in problem.rows:
        held: dict[int, Floats] = {}
        for group, size in row.bytes.items():
            to = int(group_of[group])
            held[to] = held[to] + size if to in held else size
        rows.append(MemoryRow(row.limit, held, row.fixed, row.name))
    return Problem(costs, values, uses, rows, labels)


def _hopeful(problem: Problem) -> list[Mask]:
    """By group, which options are not hopeless."""
    alive = [np.isfinite(costs) for costs in problem.costs]
    for group, mask in enumerate(alive):
        if not mask.any():
            raise PartitionError(f"{_name(problem, group)} has no placement that is possible")
    finite: dict[int, Mask] = {}
    tables: dict[tuple[int, ...], Ints] = {}

    def table(placements: tuple[int, ...]) -> Ints:
        if placements not in tables:
            tables[placements] = np.array(placements, np.int64)
        return tables[placements]

    touched: list[list[int]] = [[] for _ in alive]
    for index, use in enumerate(problem.uses):
        touched[use.user].append(index)
        touched[problem.values[use.value].maker].append(index)
    waiting = list(range(len(problem.uses)))
    queued = [True] * len(waiting)
    while waiting:
        index = waiting.pop()
        queued[index] = False
        use = problem.uses[index]
        value = problem.values[use.value]
        key = id(value.moves)
        if key not in finite:
            finite[key] = np.isfinite(value.moves) | np.eye(len(value.moves), dtype=np.bool_)
        exists = finite[key]
        if exists.all():
            continue
        made, taken = table(value.made), table(use.taken)
        if value.maker == use.user:
            now = {use.user: alive[use.user] & ((taken < 0) | exists[made, taken])}
        else:
            both = alive[value.maker], alive[use.user]
            now = dict(
                zip((value.maker, use.user), _consistent(exists, made, taken, *both), strict=True)
            )
        for group, mask in now.items():
            if mask.sum() == alive[group].sum():
                continue
            if not mask.any():
                raise PartitionError(
                    f"{_name(problem, value.maker)} and {_name(problem, use.user)} contradict each "
                    "other: no placement that the one can leave its result in, and that fits what "
                    "is around it, can be moved to one that the other takes"
                )
            alive[group] = mask
            fresh = [other for other in touched[group] if not queued[other]]
            for other in fresh:
                queued[other] = True
            waiting += fresh
    return alive


def _consistent(
    exists: Mask, made: Ints, taken: Ints, makers: Mask, users: Mask
) -> tuple[Mask, Mask]:
    """The options at both ends of a use that some option at the other end goes with."""
    left = np.zeros(len(exists), np.bool_)
    left[made[makers]] = True
    asked = np.zeros(len(exists), np.bool_)
    asked[taken[users & (taken >= 0)]] = True
    reaches, reached = np.any(exists[:, asked], axis=1), np.any(exists[left], axis=0)
    if (users & (taken < 0)).any():
        reaches = np.ones(len(exists), np.bool_)
    return makers & reaches[made], users & ((taken < 0) | reached[taken])


def only(problem: Problem, kept: Sequence[Ints]) -> Problem:
    """The problem with some options of each group."""

    def some(placements: tuple[int, ...], group: int) -> tuple[int, ...]:
        if len(placements) == len(kept[group]):
            return placements
        return tuple(placements[option] for option in kept[group].tolist())

    costs = [own[which] for own, which in zip(problem.costs, kept, strict=True)]
    values = [
        Value(value.maker, some(value.made, value.maker), value.moves, value.keeps_moved)
        for value in problem.values
    ]
    uses = [
        Use(use.value, use.user, some(use.taken, use.user), use.backward) for use in problem.uses
    ]
    rows = [
        MemoryRow(
            row.limit,
            {group: np.asarray(held)[kept[group]] for group, held in row.bytes.items()},
            row.fixed,
            row.name,
        )
        for row in problem.rows
    ]
    return Problem(costs, values, uses, rows, problem.labels)


def _name(problem: Problem, group: int) -> str:
    return repr(problem.labels[group]) if problem.labels else f"group {group}"
