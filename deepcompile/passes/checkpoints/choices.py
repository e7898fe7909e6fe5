"""For each distinct layer, sets of tensors to keep, from all that helps to as few as possible.

A forward value is available in backward when it is kept, or computed again from values that are.
Which to keep within so many bytes, at the least time, is a 0-1 program: `a[v]` value `v` is
available, `s[v]` it is kept; `a = 1` for what backward reads, `s <= a`, and a value that is made
again needs its sources, `a[v] - s[v] <= a[u]`; least `sum c[v] (a[v] - s[v])`. Without the limit of
bytes that is a minimum cut, so relaxed solutions are nearly whole. HiGHS (SciPy) solves it, with a
limit of nodes rather than time, so that every machine finds the same; without SciPy, values are
given up one by one, those first that cost least a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node

from ...pipeline.solver_output import solver_output_apart
from .joint import Joint, is_symbol, must_recompute
from .segments import Segments
from .unsolved import NO_SCIPY, Unsolved, failed

LEVELS = 12
GAP = 1e-3
NODE_LIMIT = 2000
_ON_THE_WAY = 0.25  # of the time that writing it would take: kernels compute it where it is read


@dataclass(frozen=True)
class Layer:
    """One segment as data.

    Attributes:
        nodes: what may be computed again or kept, in order.
        sources: of each, by number.
        nbytes: of each; 0 cannot be kept.
        seconds: of computing each again.
        needed: numbers of what backward reads.
        fixed: numbers of what is never computed again.
        always: numbers of what is kept in any case: other layers read it.
    """

    nodes: tuple[Node, ...]
    sources: tuple[tuple[int, ...], ...]
    nbytes: tuple[int, ...]
    seconds: tuple[float, ...]
    needed: frozenset[int]
    fixed: frozenset[int]
    always: frozenset[int]


def layer_of(joint: Joint, segments: Segments, number: int) -> Layer:
    """The segment `number` as data."""
    members = [
        node
        for node in segments.members[number]
        if node not in segments.cheap and not is_symbol(node)
    ]
    index = {node: at for at, node in enumerate(members)}
    sources, nbytes, seconds = [], [], []
    needed, fixed, always = set(), set(), set()
    for at, node in enumerate(members):
        sources.append(tuple(index[s] for s in node.all_input_nodes if s in index))
        view = joint.is_view(node)
        kept_for = joint.why_kept(node)
        savable = not view and not isinstance(node.meta.get("val"), tuple | list)
        savable &= not must_recompute(node) or kept_for is not None
        nbytes.append(joint.nbytes(node) if savable else 0)
        seconds.append(price_of(joint, node))
        if node in joint.needed:
            needed.add(at)
        if kept_for is not None:
            fixed.add(at)
        if node in segments.crossing:
            always.add(at)
    return Layer(
        tuple(members), tuple(sources), tuple(nbytes), tuple(seconds),
        frozenset(needed), frozenset(fixed), frozenset(always),
    )  # fmt: skip


def price_of(joint: Joint, node: Node) -> float:
    """Seconds of computing a node again, given all that it reads."""
    if joint.is_view(node):
        return 0.0
    if not joint.is_fusible(node):
        return joint.seconds(node)
    whole = joint.nbytes(node) / joint.rates.bandwidth
    read = any(
        not joint.is_fusible(user) and user.op == "call_function" for user in _users(joint, node)
    )
    return whole if read else _ON_THE_WAY * whole


def _users(joint: Joint, node: Node) -> list[Node]:
    found: list[Node] = []
    stack = list(node.users)
    while stack:
        user = stack.pop()
        if joint.is_view(user):
            stack.extend(user.users)
        else:
            found.append(user)
    return found


def keep_sets(
    layer: Layer, unsolved: Callable[[str], None] = lambda why: None
) -> list[frozenset[int]]:
    """Sets of numbers to keep, from the most bytes to the least, each the quickest of its size.

    Args:
        layer: to choose in.
        unsolved: called with the reason for each program that has no answer. For want of the
            richest or the leanest set all come from giving up values one by one.
    """
    if not layer.nodes:  # all that it does is cheap
        return [frozenset()]
    try:
        solve = _solver(layer)
        rich, lean = solve(None), solve(0)
    except Unsolved as error:
        unsolved(str(error))
        return _one_by_one(layer)
    low, high = _bytes(layer, lean), _bytes(layer, rich)
    found = [rich]
    kept = rich
    for step in range(1, LEVELS):
        limit = high - (high - low) * step // LEVELS
        if _bytes(layer, kept) <= limit:
            continue  # the quickest of more bytes has no more than these
        try:
            kept = solve(limit)
        except Unsolved as error:
            unsolved(str(error))
            continue
        if kept not in found:
            found.append(kept)
    if lean not in found:
        found.append(lean)
    return sorted(found, key=lambda kept: -_bytes(layer, kept))


def _bytes(layer: Layer, kept: frozenset[int]) -> int:
    return sum(layer.nbytes[at] for at in kept)


def _solver(layer: Layer) -> Callable[[int | None], frozenset[int]]:
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix
    except ImportError:
        raise Unsolved(NO_SCIPY) from None

    count = len(layer.nodes)
    unit_s = max(max(layer.seconds, default=0.0), 1e-12)
    unit_b = float(max(max(layer.nbytes, default=0), 1))
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    upper: list[float] = []

    def add(entries: Sequence[tuple[int, float]], limit: float) -> None:
        row = len(upper)
        for column, value in entries:
            rows.append(row)
            columns.append(column)
            values.append(value)
        upper.append(limit)

    for at in range(count):
        add([(count + at, 1.0), (at, -1.0)], 0.0)
        for source in layer.sources[at]:
            add([(at, 1.0), (count + at, -1.0), (source, -1.0)], 0.0)
        if at in layer.fixed:
            add([(at, 1.0), (count + at, -1.0)], 0.0)
    low, high = np.zeros(2 * count), np.ones(2 * count)
    for at in range(count):
        if at in layer.needed:
            low[at] = 1.0
        if at in layer.always and layer.nbytes[at]:
            low[at] = low[count + at] = 1.0
        if not layer.nbytes[at]:
            high[count + at] = 0.0
    sizes = np.concatenate([np.zeros(count), np.array(layer.nbytes) / unit_b])
    price = np.array(layer.seconds) / unit_s
    quick = np.concatenate([price, -price])
    total = float(sizes.sum()) or 1.0
    matrix = csr_matrix((values, (rows, columns)), shape=(len(upper), 2 * count))
    limits = LinearConstraint(matrix, -np.inf, np.array(upper))

    def solve(limit: int | None) -> frozenset[int]:
        constraints = [limits]
        objective = quick + 1e-6 * sizes / total
        if limit == 0:
            objective = sizes + 1e-6 * quick
        elif limit is not None:
            constraints.append(LinearConstraint(sizes[None, :], -np.inf, limit / unit_b + 1e-9))
        result = milp(objective, constraints=constraints, bounds=Bounds(low, high))
        if result.x is None:
            raise failed(result)
        if np.abs(result.x - np.round(result.x)).max(initial=0.0) > 1e-6:
            with solver_output_apart():
                result = milp(
                    objective,
                    constraints=constraints,
                    bounds=Bounds(low, high),
                    integrality=np.ones(2 * count),
                    options={"mip_rel_gap": GAP, "node_limit": NODE_LIMIT},
                )
        if result.x is None:
            raise failed(result)
        return frozenset(at for at in range(count) if result.x[count + at] > 0.5)

    return solve


def _one_by_one(layer: Layer) -> list[frozenset[int]]:
    """Without a solver: keep everything that backward reads, then give up what is cheap a byte."""
    kept = {
        at
        for at in range(len(layer.nodes))
        if layer.nbytes[at] and (at in layer.needed or at in layer.fixed or at in layer.always)
    }
    kept |= _behind_views(layer)
    order = sorted(
        (at for at in kept if at not in layer.fixed and at not in layer.always),
        key=lambda at: (layer.seconds[at] / layer.nbytes[at], at),
    )
    found = [frozenset(kept)]
    for number, at in enumerate(order):
        kept.discard(at)
        if (number + 1) * LEVELS // max(len(order), 1) != number * LEVELS // max(len(order), 1):
            found.append(frozenset(kept))
    return found


def _behind_views(layer: Layer) -> set[int]:
    """What can be kept in place of needed views and parts of results."""
    found: set[int] = set()
    stack = [at for at in layer.needed if not layer.nbytes[at]]
    seen = set(stack)
    while stack:
        for source in layer.sources[stack.pop()]:
            if layer.nbytes[source]:
                found.add(source)
            elif source not in seen:
                seen.add(source)
                stack.append(source)
    return found
