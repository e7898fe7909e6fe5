"""A whole choice near the optimum where a limit of memory binds.

There the linear program mixes two choices: one that holds too much and a dearer one that holds
less, in each layer as much of both. Without the limits, but with a price for each byte that is
somewhat above the program's, only the second is cheapest, and mostly it is whole (Everett's
generalised Lagrange multipliers, 1963). Colours must be finer than for the bound: a relaxation may
mix what groups that are not quite alike choose, a choice may not.

Only moves that the first program's prices let several users share are shared in this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .colours import Colours, colours_of
from .problem import Problem
from .program import Sharing, program_of
from .relaxation import Relaxed, relax
from .transport import Ints, Transport, spaces_of, transports_of

DEARER = 1.2
"""Of a byte's price in the program with limits."""

ROUNDS = 6
"""Of colours."""

SHARES = 0.02
"""Of what a move costs: who pays so much shares it."""

TIGHT = 0.999
"""Of what a move costs: it may be made where users offer so much together."""


def relax_priced(
    problem: Problem, colours: Colours, transports: Sequence[Transport], relaxed: Relaxed
) -> tuple[Colours, Relaxed]:
    """The optimum with prices for bytes, and the colours that it is of.

    Raises:
        Unsolved: the solver fails.
    """
    finer = colours_of(problem, ROUNDS)
    costs = list(finer.quotient.costs)
    for row, price in zip(finer.quotient.rows, relaxed.prices.rows, strict=True):
        for group, held in row.bytes.items():
            costs[group] = costs[group] + DEARER * price * held
    priced = replace(finer, quotient=replace(finer.quotient, costs=costs, rows=()))
    classes = transports_of(problem, finer)
    known = _worth_sharing(transports, relaxed)
    sharing = {}
    for space in spaces_of(classes):
        first = int(np.argmax(finer.values == space[0]))
        same = int(colours.values[first]), space[1]
        if same in known:
            sharing[space] = known[same]
    return finer, relax(classes, program_of(problem, priced, classes, sharing))


def _worth_sharing(transports: Sequence[Transport], relaxed: Relaxed) -> Sharing:
    """Moves that are made in the optimum, or would be at no loss, by several users together."""
    found: dict[tuple[int, bool], Ints] = {}
    for space, members in spaces_of(transports).items():
        if len(members) < 2:
            continue
        size = transports[members[0]].moves
        offers = np.zeros(size * (size + 1))
        users = np.zeros(size * (size + 1), np.int64)
        costs = np.full(size * (size + 1), np.inf)
        for index in members:
            transport = transports[index]
            paid = np.isfinite(transport.seconds) & (transport.seconds > 0)
            codes, seconds = transport.codes[paid], transport.seconds[paid] * transport.values
            shares = relaxed.prices.shares[index][paid]
            offers[codes] += shares
            users[codes] += shares > SHARES * seconds
            costs[codes] = seconds
        codes = np.flatnonzero((offers >= TIGHT * costs) & (users > 1))
        found[space] = np.union1d(codes, relaxed.sharing[space])
    return found
