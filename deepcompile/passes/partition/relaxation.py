"""Optima of the linear program, and of the same with whole numbers; HiGHS in SciPy finds both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...pipeline.solver_output import solver_output_apart
from ..checkpoints.unsolved import failed
from .problem import Seconds
from .program import Program, Sharing
from .transport import Floats, Ints, Transport

INFEASIBLE = 2
"""The status of results of `scipy.optimize` for programs that nothing fits."""

ROUNDED = 1e-6
"""Parts as small are none."""

SIMPLEX = 20_000
"""Columns up to which the dual simplex is quicker than the interior point method."""


class Infeasible(Exception):
    """Nothing fits all rows of a program."""


@dataclass(frozen=True, eq=False)
class Prices:
    """Multipliers of the program's rows, by transport; they make a bound of `bound.py`.

    Attributes:
        targets: by transport and target, what its user pays for taking it.
        shares: by transport, [source, target], its part of what the move costs.
        rows: by memory row, seconds a byte.
    """

    targets: Sequence[Floats]
    shares: Sequence[Seconds]
    rows: Floats


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The optimum where groups may mix options.

    Attributes:
        parts: by group, how much of each option it takes; they sum to one.
        seconds: as the solver says; a bound only up to its tolerances.
        prices: what the solver's dual solution says.
        sharing: the moves that several users may share and some make.
    """

    parts: Sequence[Floats]
    seconds: float
    prices: Prices
    sharing: Sharing


def relax(transports: Sequence[Transport], program: Program) -> Relaxed:
    """The optimum of the linear program.

    Raises:
        Infeasible: nothing fits.
        Unsolved: the solver fails.
    """
    from scipy.optimize import linprog

    result = linprog(
        program.costs,
        A_ub=program.below,
        b_ub=program.limits,
        A_eq=program.equal,
        b_eq=program.right,
        method="highs-ipm" if len(program.costs) > SIMPLEX else "highs-ds",
    )
    if result.status == INFEASIBLE:
        raise Infeasible
    if result.status != 0:
        raise failed(result)
    balance = result.eqlin.marginals * program.unit
    below = -result.ineqlin.marginals * program.unit
    rows = np.maximum(below[len(program.shared) :] / program.scales, 0.0)
    first = int(program.options[-1])
    paid = program.costs[first:] * program.unit
    paid[program.shared - first] = below[: len(program.shared)]
    targets, shares = [], []
    for index, transport in enumerate(transports):
        ends, pairs = program.ends[index], program.pairs[index]
        if ends is None:
            targets.append(np.zeros(len(transport.targets)))
            shares.append(np.zeros(transport.seconds.shape))
            continue
        targets.append(balance[ends[1]])
        share = np.zeros(transport.seconds.shape)
        if program.nets[index]:
            # For a move that nobody may share each would pay so much at most.
            share = np.maximum(balance[ends[1]] - balance[ends[0]][:, None], 0.0)
        start = program.starts[index] - first
        share[pairs] = paid[start : start + len(pairs[0])]
        share[np.isinf(transport.seconds)] = np.inf
        shares.append(share)
    seconds = float(result.fun) * program.unit
    prices = Prices(targets, shares, rows)
    return Relaxed(_parts(program, result.x), seconds, prices, _made(transports, program, result.x))


def _made(transports: Sequence[Transport], program: Program, solution: Floats) -> Sharing:
    """By space, the moves that are not nothing."""
    found: dict[tuple[int, bool], list[Ints]] = {}
    for transport, pairs, start in zip(transports, program.pairs, program.starts, strict=True):
        some = solution[start : start + len(pairs[0])] > ROUNDED
        found.setdefault(transport.space, []).append(transport.codes[pairs][some])
    return {space: np.unique(np.concatenate(codes)) for space, codes in found.items()}


def search_whole(program: Program, gap: float, nodes: int) -> tuple[list[Floats] | None, float]:
    """Whole options by branch and bound.

    Args:
        program: of a problem or a quotient in which groups of one colour choose alike.
        gap: how far, relative, from the optimum the search may stop.
        nodes: after so many it stops anyway.

    Returns:
        The options as parts, None where none was found; and seconds that no whole solution of the
        program undercuts.

    Raises:
        Infeasible: there is none.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    first = int(program.options[-1])
    whole = np.zeros(len(program.costs))
    whole[:first] = 1
    constraints = [LinearConstraint(program.equal, program.right, program.right)]
    if program.limits.size:
        constraints.append(LinearConstraint(program.below, -np.inf, program.limits))
    with solver_output_apart():
        result = milp(
            program.costs,
            integrality=whole,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": gap, "node_limit": nodes},
        )
    if result.status == INFEASIBLE:
        raise Infeasible
    known = result.mip_dual_bound
    bound = -np.inf if known is None else float(known) * program.unit
    return None if result.x is None else _parts(program, result.x), bound


def _parts(program: Program, solution: Floats) -> list[Floats]:
    return np.split(solution[: program.options[-1]], program.options[1:-1])
