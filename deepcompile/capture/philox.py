"""Counter-based random numbers as graph nodes: `deepcompile::philox_seed`, `_uniform`, `_normal`.

`_uniform_part` and `_normal_part` draw a part of what those draw whole, for a rank of a mesh.

A graph draws one seed from torch's generator; every other random number in it is a pure function of
that seed, the position of the random op in the graph (its `site`) and the element's linear index.
So a dropout mask can be computed again in backward instead of being stored. The implementations
here are the reference; compiled graphs generate the same bits inside their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepcompile.ir import references

#: Elements of one site: offsets of different sites never meet below this many.
SITE_STRIDE = 1 << 40

# Kept at module level: the registrations end with the object.
_LIBRARY = torch.library.Library("deepcompile", "FRAGMENT")

_LIBRARY.define(
    "philox_seed(*, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
_DRAW = "(Tensor seed, int site, SymInt[] size, *, ScalarType dtype, Device device) -> Tensor"
_LIBRARY.define(f"philox_uniform{_DRAW}", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(f"philox_normal{_DRAW}", tags=(torch.Tag.pt2_compliant_tag,))
_PART = (
    "(Tensor seed, int site, Tensor start, int[] size, int[] strides, *, "
    "ScalarType dtype, Device device) -> Tensor"
)
_LIBRARY.define(f"philox_uniform_part{_PART}", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(f"philox_normal_part{_PART}", tags=(torch.Tag.pt2_compliant_tag,))


def _seed(*, device: torch.device) -> Tensor:
    """int64 of shape (1,) from the default generator of `device`: `torch.manual_seed` fixes it."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (1,), dtype=torch.int64, device=device)


def offsets(site: int, size: Sequence[int], device: torch.device) -> Tensor:
    """The counter of each element: `site * 2**40` plus its linear index."""
    count = 1
    for extent in size:
        count *= extent
    return torch.arange(count, dtype=torch.int64, device=device) + site * SITE_STRIDE


def _uniform(
    seed: Tensor, site: int, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Uniform on [0, 1) in steps of 2**-24."""
    return references.uniform(seed, offsets(site, size, device)).reshape(size).to(dtype)


def _normal(
    seed: Tensor, site: int, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Standard normal."""
    return references.normal(seed, offsets(site, size, device)).reshape(size).to(dtype)


def part_offsets(
    site: int, start: Tensor, size: Sequence[int], strides: Sequence[int], device: torch.device
) -> Tensor:
    """The counters of a part of a whole tensor.

    Args:
        site: of the random op.
        start: int64 without dimensions, the linear index in the whole of the part's first element.
        size: of the part.
        strides: of the whole tensor, for each dimension of the part.
        device: of the result.
    """
    linear = start.to(device) + site * SITE_STRIDE
    for dim, (extent, stride) in enumerate(zip(size, strides, strict=True)):
        steps = torch.arange(extent, dtype=torch.int64, device=device) * stride
        linear = linear + steps.reshape(-1, *(1,) * (len(size) - dim - 1))
    return linear


def _uniform_part(
    seed: Tensor,
    site: int,
    start: Tensor,
    size: Sequence[int],
    strides: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return references.uniform(seed, part_offsets(site, start, size, strides, device)).to(dtype)


def _normal_part(
    seed: Tensor,
    site: int,
    start: Tensor,
    size: Sequence[int],
    strides: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return references.normal(seed, part_offsets(site, start, size, strides, device)).to(dtype)


def _fake_part(
    seed: Tensor,
    site: int,
    start: Tensor,
    size: Sequence[int],
    strides: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)


def _fake_seed(*, device: torch.device) -> Tensor:
    return torch.empty((1,), dtype=torch.int64, device=device)


def _fake_draw(
    seed: Tensor, site: int, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)


for _name, _implementation, _fake in (
    ("philox_seed", _seed, _fake_seed),
    ("philox_uniform", _uniform, _fake_draw),
    ("philox_normal", _normal, _fake_draw),
    ("philox_uniform_part", _uniform_part, _fake_part),
    ("philox_normal_part", _normal_part, _fake_part),
):
    _LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"deepcompile::{_name}", _fake, lib=_LIBRARY)

philox_seed = torch.ops.deepcompile.philox_seed.default
philox_uniform = torch.ops.deepcompile.philox_uniform.default
philox_normal = torch.ops.deepcompile.philox_normal.default
philox_uniform_part = torch.ops.deepcompile.philox_uniform_part.default
philox_normal_part = torch.ops.deepcompile.philox_normal_part.default
