"""Which elements of a tensor a rank has: ranges of each dimension. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from deepcompile.errors import PartitionError
from deepcompile.ir.placements import (
    REPLICATE,
    Partial,
    Placement,
    Placements,
    Replicate,
    Shard,
    divides,
)

Ranges = tuple[tuple[int, int], ...]


def ranges(
    shape: Sequence[int], placements: Placements, sizes: Sequence[int], rank: Sequence[int]
) -> tuple[Ranges, ...]:
    """Of each dimension the `(start, stop)` that a rank has, in the order it has them.

    Args:
        shape: of the whole tensor.
        placements: for each axis of the mesh, applied in this order.
        sizes: of the axes.
        rank: where the rank stands on each axis.
    """
    found: list[Ranges] = [((0, extent),) for extent in shape]
    for placement, size, place in zip(placements, sizes, rank, strict=True):
        if isinstance(placement, Shard) and size > 1:
            owned = found[placement.dim]
            piece = sum(stop - start for start, stop in owned) // (len(placement.pieces) or 1)
            share = piece // size
            starts = range(place * share, sum(b - a for a, b in owned), piece)
            parts = [part for start in starts for part in _part(owned, start, start + share)]
            found[placement.dim] = _merged(parts)
    return tuple(found)


def _part(owned: Ranges, start: int, stop: int) -> list[tuple[int, int]]:
    """The ranges of elements `start` to `stop` of those that ranges list."""
    found = []
    before = 0
    for first, last in owned:
        low, high = max(start - before, 0), min(stop - before, last - first)
        if low < high:
            found.append((first + low, first + high))
        before += last - first
    return found


def _merged(parts: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for start, stop in parts:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def checked(
    name: str, shape: Sequence[int], placements: Placements, axes: Sequence[tuple[str, int]]
) -> Placements:
    """The same placements, with the extents of pieces as the axes before leave them.

    Raises:
        PartitionError: where a parameter cannot be placed so, and what can be done.
    """
    if len(placements) != len(axes):
        names = ", ".join(axis for axis, _ in axes)
        raise PartitionError(
            f"{name!r} has {len(placements)} placements; it needs one for each axis of the mesh: "
            f"{names}"
        )
    left = list(shape)
    found: list[Placement] = []
    for placement, (axis, ranks) in zip(placements, axes, strict=True):
        if isinstance(placement, Partial):
            raise PartitionError(f"{name!r} is placed {placement}, which a parameter cannot be")
        if isinstance(placement, Replicate):
            found.append(REPLICATE)
            continue
        if not isinstance(placement, Shard):
            raise PartitionError(
                f"{name!r} is placed {placement!r}; give placements of deepcompile.ir.placements, "
                "or their text, as in 'R S(0)'"
            )
        dim, count = placement.dim, len(placement.pieces) or 1
        if dim >= len(left):
            raise PartitionError(
                f"{name!r} of shape {tuple(shape)} has no dimension {dim} to place on {axis!r}"
            )
        if len(set(placement.pieces)) > 1:
            raise PartitionError(
                f"{name!r} is placed {placement}: pieces of a parameter have equal size; "
                "shard another dimension, or replicate it"
            )
        extent = left[dim]
        if count > 1 and sum(placement.pieces) not in (extent, shape[dim]):
            raise PartitionError(f"the pieces of {placement} are not those of {name!r}: {extent}")
        pieces = (extent // count,) * count if count > 1 else ()
        if extent % count or not divides(extent, Shard(dim, pieces), ranks):
            step = count * ranks
            raise PartitionError(
                f"dimension {dim} of {name!r} has {extent} elements, which {ranks} ranks of axis "
                f"{axis!r} cannot share equally{f' in {count} pieces' if count > 1 else ''}; the "
                f"nearest size that works is {max(round(extent / step), 1) * step}, or replicate it"
            )
        found.append(Shard(dim, pieces))
        left[dim] = extent // ranks
    return tuple(found)
