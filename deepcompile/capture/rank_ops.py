"""What one rank of a group does by itself in a partitioned graph, as operators.

They read the rank's place in its group when they run, so that one graph serves all ranks.
Shards may come in pieces: parts of a dimension that are sharded each on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("deepcompile", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIBRARY.define("rank_of(str group, *, Device device) -> Tensor", tags=_TAGS)
_SHARD = "(Tensor value, int dim, int[] pieces, int ranks, str group) -> Tensor"
_LIBRARY.define(f"own_part{_SHARD}", tags=_TAGS)
_LIBRARY.define(f"spread_part{_SHARD}", tags=_TAGS)
_LIBRARY.define("own_value(Tensor value, str group) -> Tensor", tags=_TAGS)


def place_in(group: str) -> int:
    """This process' number among the ranks of a group, by the group's name."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _resolve_process_group

    return dist.get_rank(_resolve_process_group(group))  # type: ignore[arg-type]


def part_of(value: Tensor, dim: int, pieces: Sequence[int], ranks: int, place: int) -> Tensor:
    """The part of a whole tensor that the rank at `place` has; `pieces` empty for one."""
    extents = list(pieces) or [value.shape[dim]]
    own = []
    for piece in value.split(extents, dim):
        share = piece.shape[dim] // ranks
        own.append(piece.narrow(dim, place * share, share))
    return (
        own[0].clone(memory_format=torch.contiguous_format)
        if len(own) == 1
        else torch.cat(own, dim)
    )


def spread_of(value: Tensor, dim: int, pieces: Sequence[int], ranks: int, place: int) -> Tensor:
    """A tensor of the whole shape, zero but for the part that the rank at `place` has."""
    whole = value.shape[dim] * ranks
    shape = (*value.shape[:dim], whole, *value.shape[dim + 1 :])
    result = value.new_zeros(shape)
    begin = taken = 0
    for piece in list(pieces) or [whole]:
        share = piece // ranks
        result.narrow(dim, begin + place * share, share).copy_(value.narrow(dim, taken, share))
        begin, taken = begin + piece, taken + share
    return result


def _rank_of(group: str, *, device: torch.device) -> Tensor:
    return torch.tensor(place_in(group), dtype=torch.int64, device=device)


def _own_part(value: Tensor, dim: int, pieces: Sequence[int], ranks: int, group: str) -> Tensor:
    return part_of(value, dim, pieces, ranks, place_in(group))


def _spread_part(value: Tensor, dim: int, pieces: Sequence[int], ranks: int, group: str) -> Tensor:
    return spread_of(value, dim, pieces, ranks, place_in(group))


def _own_value(value: Tensor, group: str) -> Tensor:
    """The value on the first rank of the group, zeros on the others."""
    return value.clone() if place_in(group) == 0 else torch.zeros_like(value)


def _fake_part(value: Tensor, dim: int, pieces: Sequence[int], ranks: int, group: str) -> Tensor:
    shape = (*value.shape[:dim], value.shape[dim] // ranks, *value.shape[dim + 1 :])
    return value.new_empty(shape)


def _fake_spread(value: Tensor, dim: int, pieces: Sequence[int], ranks: int, group: str) -> Tensor:
    shape = (*value.shape[:dim], value.shape[dim] * ranks, *value.shape[dim + 1 :])
    return value.new_empty(shape)


for _name, _implementation, _fake in (
    (
        "rank_of",
        _rank_of,
        lambda group, *, device: torch.empty((), dtype=torch.int64, device=device),
    ),
    ("own_part", _own_part, _fake_part),
    ("spread_part", _spread_part, _fake_spread),
    ("own_value", _own_value, lambda value, group: torch.empty_like(value)),
):
    _LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"deepcompile::{_name}", _fake, lib=_LIBRARY)

rank_of = torch.ops.deepcompile.rank_of.default
own_part = torch.ops.deepcompile.own_part.default
spread_part = torch.ops.deepcompile.spread_part.default
own_value = torch.ops.deepcompile.own_value.default
