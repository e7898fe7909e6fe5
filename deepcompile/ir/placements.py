"""How a tensor lies on the ranks of a mesh, as data. Imports no torch.

One `Placement` for each axis of the mesh. As text: `R`, `S(1)`, `S(0;256,64,64)`, `P(sum)`.

A dimension that is sharded in *pieces* is a concatenation of parts of which each is sharded on its
own, so that a rank holds the concatenation of its shares of all parts. That is what a fused
query-key-value projection needs (split after it, each part is an ordinary shard), and what a
sharded inner dimension becomes when it is flattened with an outer one (then the pieces are equal).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PartialKind = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Replicate:
    """Every rank of the axis has the whole tensor."""

    def __str__(self) -> str:
        return "R"


@dataclass(frozen=True, slots=True)
class Shard:
    """Every rank has an equal share of a dimension.

    Attributes:
        dim: counted from the front.
        pieces: extents of the parts that are sharded each on its own; empty for one part.
    """

    dim: int
    pieces: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"S({self.dim})" if not self.pieces else f"S({self.dim};{_text(self.pieces)})"


@dataclass(frozen=True, slots=True)
class Partial:
    """Every rank has a tensor of the whole shape; the value is what reducing all of them gives."""

    kind: PartialKind = "sum"

    def __str__(self) -> str:
        return f"P({self.kind})"


Placement = Replicate | Shard | Partial
Placements = tuple[Placement, ...]

REPLICATE = Replicate()
PARTIAL = Partial()

_TEXT = re.compile(r"^(?:(R)|P\((sum|max|min)\)|S\((\d+)(?:;([\d,x]+))?\))$")


def parse_placement(text: str) -> Placement:
    """The reverse of `str`; ValueError for text that is none."""
    match = _TEXT.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no placement; examples: 'R', 'S(0)', 'P(sum)'")
    if match[1]:
        return REPLICATE
    if match[2]:
        return Partial(match[2])  # type: ignore[arg-type]
    return Shard(int(match[3]), _pieces(match[4] or ""))


def parse_placements(text: str) -> Placements:
    """Of all axes, as `placements_text` writes them: `S(0) R`."""
    return tuple(parse_placement(part) for part in text.split())


def placements_text(placements: Sequence[Placement]) -> str:
    return " ".join(map(str, placements))


def divides(extent: int, placement: Placement, ranks: int) -> bool:
    """Whether each rank's share of a dimension of `extent` elements is equally large."""
    if not isinstance(placement, Shard):
        return True
    if not placement.pieces:
        return extent % ranks == 0
    return sum(placement.pieces) == extent and all(part % ranks == 0 for part in placement.pieces)


def local_shape(
    shape: Sequence[int], placements: Sequence[Placement], sizes: Sequence[int]
) -> tuple[int, ...]:
    """What one rank has of a tensor of `shape`; each axis must divide what the ones before left.

    Raises:
        ValueError: where an axis does not divide a dimension.
    """
    local = list(shape)
    for placement, ranks in zip(placements, sizes, strict=True):
        if isinstance(placement, Shard):
            dim = placement.dim
            if dim >= len(local) or local[dim] % ranks:
                raise ValueError(f"{placement} does not divide {tuple(shape)} by {ranks}")
            local[dim] //= ranks
    return tuple(local)


def local_numel(numel: int, placements: Sequence[Placement], sizes: Sequence[int]) -> int:
    """Elements that one rank has of a tensor of `numel` elements."""
    shards = (
        size for place, size in zip(placements, sizes, strict=True) if isinstance(place, Shard)
    )
    return numel // math.prod(shards)


def _text(pieces: tuple[int, ...]) -> str:
    if len(pieces) > 3 and len(set(pieces)) == 1:
        return f"{len(pieces)}x{pieces[0]}"
    return ",".join(map(str, pieces))


def _pieces(text: str) -> tuple[int, ...]:
    if "x" in text:
        count, extent = text.split("x")
        return (int(extent),) * int(count)
    return tuple(int(part) for part in text.split(",") if part)
