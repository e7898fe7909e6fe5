"""Where a graph of one device reads a parameter that the ranks of a mesh hold in shares.

    unshard(local, spec) -> full        the whole parameter, of this rank's share
    reshard_grad(grad, spec) -> local   this rank's share of the gradient; averaged on data axes

`deepcompile.parallel` reads every parameter through `unshard`, so that Dynamo and AOTAutograd trace
ordinary code of full shapes with these markers in it. The compiler puts the local program of a plan
in their place; anywhere else they communicate as they say. What a marker needs to know is in its
`spec`, a `MarkerSpec` as text, because that is what a graph can hold.

Placements are those of `deepcompile.ir.placements`, for one axis of the mesh each. They are applied
in the order of axes: an axis divides what the axes before it left, the pieces of a dimension too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import (
    Placements,
    Replicate,
    Shard,
    local_shape,
    parse_placements,
    placements_text,
)

_AXIS = re.compile(r"^(\w+)(\*?)=(\d+)@(.+)$")
_NO_GROUP = "-"


@dataclass(frozen=True, slots=True)
class MarkerAxis:
    """An axis of the mesh.

    Attributes:
        name: of the axis.
        size: ranks along it.
        is_data: whether each of them has a batch of its own.
        group: name of this rank's process group along the axis, which may differ from what other
            ranks call theirs; empty where there is one rank only.
    """

    name: str
    size: int
    is_data: bool
    group: str

    @property
    def rank(self) -> int:
        """Where this rank stands, 0 to size - 1; the process group knows it."""
        if self.size == 1:
            return 0
        from torch.distributed.distributed_c10d import _resolve_process_group

        return _resolve_process_group(self.group).rank()  # type: ignore[arg-type]

    def __str__(self) -> str:
        star = "*" if self.is_data else ""
        return f"{self.name}{star}={self.size}@{self.group or _NO_GROUP}"


def mesh_of(axes: Sequence[MarkerAxis]) -> Mesh:
    """The mesh that axes make."""
    return Mesh(
        tuple((axis.name, axis.size) for axis in axes),
        frozenset(axis.name for axis in axes if axis.is_data),
    )


@dataclass(frozen=True, slots=True)
class MarkerSpec:
    """What a marker needs to know; `str` writes it and `parse` reads it back.

    As text: `64,16 | R S(0;32,32) | dp*=2@3,tp=2@5 | layers.0.attn.weight`.

    Attributes:
        shape: of the whole parameter.
        placements: one for each axis; no `Partial`, and pieces of equal size only.
        axes: of the mesh, outermost first.
        label: the name of the parameter.
    """

    shape: tuple[int, ...]
    placements: Placements
    axes: tuple[MarkerAxis, ...]
    label: str

    @classmethod
    def parse(cls, text: str) -> MarkerSpec:
        """The reverse of `str`; ValueError for text that is none."""
        return _parse(text)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def mesh(self) -> Mesh:
        """The mesh as planning and lowering know it."""
        return mesh_of(self.axes)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """What each rank has."""
        return local_shape(self.shape, self.placements, self.sizes)

    def __str__(self) -> str:
        shape = ",".join(map(str, self.shape))
        axes = ",".join(map(str, self.axes))
        return f"{shape} | {placements_text(self.placements)} | {axes} | {self.label}"


@functools.cache
def _parse(text: str) -> MarkerSpec:
    parts = text.split(" | ", 3)
    if len(parts) != 4:
        raise ValueError(f"{text!r} is no spec of a marker")
    shape, placements, axes, label = parts
    matches = [_AXIS.match(axis) for axis in axes.split(",")]
    if not all(matches):
        raise ValueError(f"{axes!r} are no axes of a marker")
    return MarkerSpec(
        tuple(int(extent) for extent in shape.split(",") if extent.strip()),
        parse_placements(placements),
        tuple(
            MarkerAxis(m[1], int(m[3]), bool(m[2]), "" if m[4] == _NO_GROUP else m[4])
            for m in matches
            if m
        ),
        label,
    )


def gather(local: Tensor, spec: MarkerSpec) -> Tensor:
    """The whole tensor on every rank, in memory of its own: inner axes first."""
    tensor = local
    for axis, placement in reversed(list(zip(spec.axes, spec.placements, strict=True))):
        if isinstance(placement, Shard) and axis.size > 1:
            tensor = _joined(_all_gather(tensor, axis), placement)
    return tensor.clone() if tensor is local else tensor


def share(full: Tensor, spec: MarkerSpec) -> Tensor:
    """This rank's share of a tensor that it has whole: a view of it where that can be."""
    for axis, placement in zip(spec.axes, spec.placements, strict=True):
        if isinstance(placement, Shard) and axis.size > 1:
            full = _divided(full, placement, axis.size)[axis.rank]
    return full


def _reduced_share(grad: Tensor, spec: MarkerSpec) -> Tensor:
    tensor = grad
    for axis, placement in zip(spec.axes, spec.placements, strict=True):
        if isinstance(placement, Shard) and axis.size > 1:
            shares = _divided(tensor, placement, axis.size)
            tensor = _mean_scattered(shares, axis) if axis.is_data else shares[axis.rank]
    for axis, placement in zip(spec.axes, spec.placements, strict=True):
        if isinstance(placement, Replicate) and axis.is_data and axis.size > 1:
            tensor = _mean(tensor, axis)
    return tensor.clone(memory_format=torch.contiguous_format)


def _divided(full: Tensor, placement: Shard, ranks: int) -> Tensor:
    """Shares of a dimension, one for each rank along a new first dimension."""
    dim, pieces = placement.dim, len(placement.pieces) or 1
    parts = full.unflatten(dim, (pieces, ranks, full.shape[dim] // pieces // ranks))
    return parts.movedim(dim + 1, 0).flatten(dim + 1, dim + 2)


def _joined(shares: Tensor, placement: Shard) -> Tensor:
    """The reverse of `_divided`."""
    dim, pieces = placement.dim, len(placement.pieces) or 1
    parts = shares.unflatten(dim + 1, (pieces, shares.shape[dim + 1] // pieces))
    return parts.movedim(0, dim + 1).flatten(dim, dim + 2).contiguous()


def _all_gather(tensor: Tensor, axis: MarkerAxis) -> Tensor:
    """What all ranks have, along a new first dimension."""
    ops = torch.ops._c10d_functional
    rows = ops.all_gather_into_tensor(tensor.contiguous().unsqueeze(0), axis.size, axis.group)
    return ops.wait_tensor(rows)


def _mean_scattered(shares: Tensor, axis: MarkerAxis) -> Tensor:
    """The mean over ranks of what they have for this one. Divided first, as in DDP: for float16."""
    ops = torch.ops._c10d_functional
    divided = (shares / axis.size).contiguous()
    return ops.wait_tensor(
        ops.reduce_scatter_tensor(divided, "sum", axis.size, axis.group)
    ).squeeze(0)


def _mean(tensor: Tensor, axis: MarkerAxis) -> Tensor:
    ops = torch.ops._c10d_functional
    divided = (tensor / axis.size).contiguous()
    return ops.wait_tensor(ops.all_reduce(divided, "sum", axis.group))


def _unshard(local: Tensor, spec: str) -> Tensor:
    return gather(local, MarkerSpec.parse(spec))


def _reshard_grad(grad: Tensor, spec: str) -> Tensor:
    return _reduced_share(grad, MarkerSpec.parse(spec))


def _fake_unshard(local: Tensor, spec: str) -> Tensor:
    parsed = MarkerSpec.parse(spec)
    _expect("the share", local.shape, parsed.local_shape, parsed)
    return local.new_empty(parsed.shape)


def _fake_reshard_grad(grad: Tensor, spec: str) -> Tensor:
    parsed = MarkerSpec.parse(spec)
    _expect("the gradient", grad.shape, parsed.shape, parsed)
    return grad.new_empty(parsed.local_shape)


def _expect(what: str, shape: Sequence[int], expected: tuple[int, ...], spec: MarkerSpec) -> None:
    if tuple(shape) != expected:
        raise ValueError(f"{what} of {spec.label} has shape {tuple(shape)}, not {expected}")


# Kept at module level: the registrations end with the object.
_LIBRARY = torch.library.Library("deepcompile", "FRAGMENT")
for _name, _argument, _real, _fake in (
    ("unshard", "local", _unshard, _fake_unshard),
    ("reshard_grad", "grad", _reshard_grad, _fake_reshard_grad),
):
    _LIBRARY.define(
        f"{_name}(Tensor {_argument}, str spec) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
    )
    _LIBRARY.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"deepcompile::{_name}", _fake, lib=_LIBRARY)

unshard = torch.ops.deepcompile.unshard.default
reshard_grad = torch.ops.deepcompile.reshard_grad.default


def _remember_spec(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Any, ...], output: Tensor
) -> None:
    ctx.spec = inputs[1]  # type: ignore[attr-defined]


def _unshard_backward(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor
) -> tuple[Tensor, None]:
    return reshard_grad(grad, ctx.spec), None  # type: ignore[attr-defined]


def _reshard_grad_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> None:
    raise NotImplementedError(
        f"a second derivative by {MarkerSpec.parse(ctx.spec).label}: "  # type: ignore[attr-defined]
        "gradients of a model that ranks hold in shares cannot be differentiated again"
    )


for _packet, _backward in (
    ("unshard", _unshard_backward),
    ("reshard_grad", _reshard_grad_backward),
):
    torch.library.register_autograd(
        f"deepcompile::{_packet}", _backward, setup_context=_remember_spec, lib=_LIBRARY
    )
