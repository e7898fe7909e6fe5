"""Places for the boxes of a small graph: in layers, from top to bottom.

A box lies one layer below the lowest of those it takes something from; within a layer, boxes are
ordered by the mean place of their neighbours, swept down and up a few times (Sugiyama, Tagawa and
Toda, 1981). Edges that go up in the given order do not count for the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 176, 38
GAP_X, GAP_Y = 18, 34
MARGIN = 12
_SWEEPS = 6


@dataclass(frozen=True)
class Placed:
    """The upper left corner of each box, and what all of them take; in pixels."""

    corners: Mapping[str, tuple[int, int]]
    width: int
    height: int


def place(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> Placed:
    """Corners for boxes `names`, in whose order most of `edges` go forward."""
    order = {name: number for number, name in enumerate(names)}
    down = [(a, b) for a, b in edges if order[a] < order[b]]
    above: dict[str, list[str]] = {name: [] for name in names}
    below: dict[str, list[str]] = {name: [] for name in names}
    for a, b in down:
        above[b].append(a)
        below[a].append(b)
    layer: dict[str, int] = {}
    for name in names:
        layer[name] = max((layer[other] + 1 for other in above[name]), default=0)
    for name in reversed(names):
        # A box without inputs stands right above what takes it first.
        if not above[name] and below[name]:
            layer[name] = min(layer[other] for other in below[name]) - 1
    lowest = min(layer.values(), default=0)
    layers: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) - lowest + 1)]
    for name in names:
        layers[layer[name] - lowest].append(name)
    x = _spread(layers)
    for sweep in range(_SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        for row in layers if sweep % 2 == 0 else reversed(layers):
            row.sort(key=lambda name: _mean([x[n] for n in neighbours[name]], x[name]))
        x = _spread(layers)
    width = int(max((x[name] for name in names), default=0.0) + WIDTH + MARGIN)
    corners = {
        name: (int(x[name]), MARGIN + number * (HEIGHT + GAP_Y))
        for number, row in enumerate(layers)
        for name in row
    }
    return Placed(corners, width, 2 * MARGIN + len(layers) * (HEIGHT + GAP_Y) - GAP_Y)


def _spread(layers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Places along each layer, all layers around one middle."""
    widest = max((len(row) for row in layers), default=0) * (WIDTH + GAP_X)
    found = {}
    for row in layers:
        start = MARGIN + (widest - len(row) * (WIDTH + GAP_X)) / 2
        for number, name in enumerate(row):
            found[name] = start + number * (WIDTH + GAP_X)
    return found


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
