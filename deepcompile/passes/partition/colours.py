"""Groups that look alike, so that one decision stands for all of them.

A deep model repeats its layers, and of two layers that cost the same each operation of one should
be placed as in the other. Colour refinement (the first half of the Weisfeiler-Lehman test) finds
which groups correspond: all begin with a hash of their own numbers, and in each round take in the
hashes of their neighbours, so that after `k` rounds two groups have one colour where the problem
looks the same from both up to `k` tensors away. Hashes are 64 bits of the numbers themselves:
neither the order of groups nor the process decides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from .problem import MemoryRow, Problem, Use, Value

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Colours:
    """Which parts of a problem are taken for one.

    Groups of one colour have the same costs, the same bytes in each memory row, and as many tensors
    and uses of each class. Tensors of one class have the same tables and as many uses of each
    class. Of what is summed over a class, the sums over groups thus follow from those over colours:
    that makes the linear program of colours and classes a relaxation of that of the problem,
    however few the rounds.

    Attributes:
        groups: by group, its colour.
        values, uses: by tensor and by use, its class; told apart by one round less.
        quotient: the problem where groups of one colour must choose the same option. What its
            choices cost, and the bytes that they hold, is what the expanded choices do in the
            problem.
    """

    groups: Ints
    values: Ints
    uses: Ints
    quotient: Problem

    def expand(self, options: Sequence[int]) -> tuple[int, ...]:
        """A choice for every group from one for every colour."""
        return tuple(np.asarray(options, np.int64)[self.groups].tolist())


@dataclass(frozen=True, eq=False)
class _Ends:
    """By value its maker, by use its tensor and its user."""

    maker: Ints
    used: Ints
    user: Ints


def colours_of(problem: Problem, rounds: int) -> Colours:
    """Colours after so many rounds, at least one, or until a round tells no more groups apart."""
    ends = _Ends(
        np.array([value.maker for value in problem.values], np.int64),
        np.array([use.value for use in problem.uses], np.int64),
        np.array([use.user for use in problem.uses], np.int64),
    )
    groups = _hashes_of_groups(problem)
    values = _hashes_of_values(problem.values)
    uses = _hashes_of_uses(problem.uses)
    before = groups
    count = np.unique(groups).size
    for _ in range(rounds):
        before, groups = groups, _round(groups, values, uses, ends)
        told = np.unique(groups).size
        if told == count:
            break
        count = told
    value_classes, use_classes = _classes(before, values, uses, ends)
    quotient, group_of = _quotient(problem, groups, *_classes(groups, values, uses, ends))
    return Colours(group_of, _unique(value_classes)[2], _unique(use_classes)[2], quotient)


def no_colours(problem: Problem) -> Colours:
    """Every group for itself."""
    counts = len(problem.costs), len(problem.values), len(problem.uses)
    groups, values, uses = (np.arange(count, dtype=np.int64) for count in counts)
    return Colours(groups, values, uses, problem)


def _digest(*parts: bytes) -> int:
    made = blake2b(digest_size=8)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return int.from_bytes(made.digest(), "little")


def _hashes_of_groups(problem: Problem) -> Hashes:
    made = np.array([_digest(costs.tobytes()) for costs in problem.costs], np.uint64)
    for number, row in enumerate(problem.rows):
        for group, held in row.bytes.items():
            if held.any():
                own = _digest(number.to_bytes(4, "little"), np.asarray(held, np.float64).tobytes())
                made[group] = _mixed(made[group : group + 1], np.array([own], np.uint64))[0]
    return made


def _hashes_of_values(values: Sequence[Value]) -> Hashes:
    known: dict[int, bytes] = {}  # many tensors share one array

    def moves(value: Value) -> bytes:
        key = id(value.moves)
        if key not in known:
            known[key] = _digest(value.moves.tobytes()).to_bytes(8, "little")
        return known[key]

    def own(value: Value) -> int:
        return _digest(moves(value), _tables(value.made), bytes([value.keeps_moved]))

    return np.array([own(value) for value in values], np.uint64)


def _hashes_of_uses(uses: Sequence[Use]) -> Hashes:
    made = [_digest(_tables(use.taken), bytes([use.backward])) for use in uses]
    return np.array(made, np.uint64)


def _tables(placements: tuple[int, ...]) -> bytes:
    return np.array(placements, np.int64).tobytes()


def _mixed(*parts: Hashes) -> Hashes:
    """One hash of several, by element; their order counts (splitmix64)."""
    made = np.zeros_like(parts[0])
    for part in parts:
        made = (made ^ part) + np.uint64(0x9E3779B97F4A7C15)
        made = (made ^ (made >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        made = (made ^ (made >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        made = made ^ (made >> np.uint64(31))
    return made


def _gathered(hashes: Hashes, where: Ints, count: int) -> Hashes:
    """Sums of hashes by place, which do not depend on their order."""
    made = np.zeros(count, np.uint64)
    np.add.at(made, where, hashes)
    return made


def _classes(groups: Hashes, values: Hashes, uses: Hashes, ends: _Ends) -> tuple[Hashes, Hashes]:
    """Tensors with what makes and what uses them, and uses with those."""
    users = _gathered(_mixed(uses, groups[ends.user]), ends.used, len(values))
    seen = _mixed(values, groups[ends.maker], users)
    return seen, _mixed(uses, seen[ends.used], groups[ends.user])


def _round(groups: Hashes, values: Hashes, uses: Hashes, ends: _Ends) -> Hashes:
    """Groups with the tensors that they make and use, and those tensors' other ends."""
    seen, taken = _classes(groups, values, uses, ends)
    made = _gathered(seen, ends.maker, len(groups))
    return _mixed(groups, made, _gathered(taken, ends.user, len(groups)))


def _quotient(
    problem: Problem, groups: Hashes, values: Hashes, uses: Hashes
) -> tuple[Problem, Ints]:
    """The problem of one part a colour, and the colours of groups."""
    _, first, group_of, counts = _unique(groups)
    _, first_value, value_of, value_counts = _unique(values)
    _, first_use, _, _ = _unique(uses)
    costs = [problem.costs[at] * count for at, count in zip(first, counts, strict=True)]
    some_values = []
    for at, count in zip(first_value, value_counts, strict=True):
        value = problem.values[at]
        moves = value.moves * count
        maker = int(group_of[value.maker])
        some_values.append(Value(maker, value.made, moves, value.keeps_moved))
    some_uses = []
    for at in first_use:
        use = problem.uses[at]
        place = int(value_of[use.value]), int(group_of[use.user])
        some_uses.append(Use(*place, use.taken, use.backward))
    rows = []
    for row in problem.rows:
        held: dict[int, npt.NDArray[np.float64]] = {}
        for group, size in row.bytes.items():
            colour = int(group_of[group])
            held[colour] = held[colour] + size if colour in held else np.asarray(size, np.float64)
        rows.append(MemoryRow(row.limit, dict(sorted(held.items())), row.fixed, row.name))
    labels = [problem.labels[at] for at in first] if problem.labels else []
    return Problem(costs, some_values, some_uses, rows, labels), group_of


def _unique(hashes: Hashes) -> tuple[Any, Any, Any, Any]:
    """As `numpy.unique` says it; in the order of the hashes, whatever that of the groups is."""
    return np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
