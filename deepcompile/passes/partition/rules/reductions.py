"""Sums, means, extrema and operations along one dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PartialKind
from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    linear_in,
    outputs_of,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def dims_of(value: Any, rank: int) -> tuple[int, ...]:
    """A dimension, several, or (None, []) all of them; counted from the front."""
    if value is None or (isinstance(value, Sequence) and not value):
        return tuple(range(rank))
    return tuple(
        dim % rank if rank else 0 for dim in ([value] if isinstance(value, int) else value)
    )


def reduction_factors(
    node: Node, dims: Sequence[int], keep: bool, kind: PartialKind | None
) -> tuple[Factor, ...]:
    """Of a node with one input; `kind` None: the reduced dimensions cannot be shared."""
    shape = shape_of(tensor_inputs(node)[0])
    outputs = len(outputs_of(node))
    factors, place = [], 0
    for dim, extent in enumerate(shape):
        if dim in dims:
            if kind is not None and extent > 1:
                factors.append(Factor((dim,), (None,) * outputs, kind))
            place += keep
        else:
            if extent > 1:
                factors.append(Factor((dim,), (place,) * outputs))
            place += 1
    return tuple(factors)


@rule_for(aten.sum.dim_IntList, aten.sum.default)
def _sum(node: Node) -> Rule:
    dims = dims_of(argument(node, 1, "dim"), len(shape_of(tensor_inputs(node)[0])))
    keep = bool(argument(node, 2, "keepdim", False))
    if node.target is aten.sum.default:
        dims, keep = dims_of(None, len(shape_of(tensor_inputs(node)[0]))), False
    return Rule(reduction_factors(node, dims, keep, "sum"), linear_in(node, (0,)))


@rule_for(aten.mean.dim, aten.mean.default)
def _mean(node: Node) -> Rule:
    rank = len(shape_of(tensor_inputs(node)[0]))
    whole = node.target is aten.mean.default
    dims = dims_of(None if whole else argument(node, 1, "dim"), rank)
    keep = False if whole else bool(argument(node, 2, "keepdim", False))
    factors = reduction_factors(node, dims, keep, "sum")
    return Rule(factors, linear_in(node, (0,)), localise=_local_mean)


def _local_mean(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A sum over what is here, divided by how many there are everywhere."""
    source = tensor_inputs(node)[0]
    shape = shape_of(source)
    whole = node.target is aten.mean.default
    dims = dims_of(None if whole else argument(node, 1, "dim"), len(shape))
    keep = False if whole else bool(argument(node, 2, "keepdim", False))
    total = emit.call(aten.sum.dim_IntList, args[0], list(dims), keep, **kwargs)
    return emit.call(aten.div.Scalar, total, math.prod(shape[dim] for dim in dims))


@rule_for(aten.amax.default)
def _maximum(node: Node) -> Rule:
    dims = dims_of(argument(node, 1, "dim"), len(shape_of(tensor_inputs(node)[0])))
    keep = bool(argument(node, 2, "keepdim", False))
    return Rule(reduction_factors(node, dims, keep, "max"), linear_in(node, (0,), kinds=("max",)))


@rule_for(aten.amin.default)
def _minimum(node: Node) -> Rule:
    dims = dims_of(argument(node, 1, "dim"), len(shape_of(tensor_inputs(node)[0])))
    keep = bool(argument(node, 2, "keepdim", False))
    return Rule(reduction_factors(node, dims, keep, "min"), linear_in(node, (0,), kinds=("min",)))


@rule_for(aten.max.default, aten.min.default)
def _extremum(node: Node) -> Rule:
    kind: PartialKind = "max" if node.target is aten.max.default else "min"
    dims = dims_of(None, len(shape_of(tensor_inputs(node)[0])))
    return Rule(reduction_factors(node, dims, False, kind), linear_in(node, (0,), kinds=(kind,)))


@rule_for(aten.max.dim, aten.min.dim)
def _extremum_and_place(node: Node) -> Rule:
    dims = dims_of(node.args[1], len(shape_of(tensor_inputs(node)[0])))
    return Rule(reduction_factors(node, dims, bool(argument(node, 2, "keepdim", False)), None))


@rule_for(aten.histc.default)
def _histogram(node: Node) -> Rule | None:
    """Counts of parts add up, if all use the same bins."""
    if argument(node, 2, "min", 0) == argument(node, 3, "max", 0):
        return None
    shape = shape_of(tensor_inputs(node)[0])
    return Rule(tuple(Factor((d,), (None,), "sum") for d, extent in enumerate(shape) if extent > 1))


@rule_for(aten.var_mean.correction, aten.var.correction, aten.std.correction)
@rule_for(aten.logsumexp.default, aten.prod.dim_int, aten.argmax.default, aten.argmin.default)
@rule_for(aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims)
def _whole(node: Node) -> Rule:
    """Reductions of which parts do not combine by a sum or an extremum."""
    dims = dims_of(argument(node, 1, "dim"), len(shape_of(tensor_inputs(node)[0])))
    position = 3 if node.target in (aten.var_mean.correction, aten.var.correction) else 2
    keep = bool(argument(node, position, "keepdim", False))
    return Rule(reduction_factors(node, dims, keep, None))


@rule_for(aten._softmax.default, aten._log_softmax.default, aten.cumsum.default)
@rule_for(aten.cumprod.default, aten.logcumsumexp.default, aten.flip.default, aten.roll.default)
def _along(node: Node) -> Rule:
    """Operations that keep the shape and mix elements along some dimensions."""
    shape = shape_of(node)
    position = 2 if node.target is aten.roll.default else 1
    mixed = dims_of(argument(node, position, "dim"), len(shape))
    return Rule(along_factors(node, mixed), _linear_along(node))


def _linear_along(node: Node) -> tuple[Any, ...]:
    linear = (aten.cumsum.default, aten.flip.default, aten.roll.default)
    return linear_in(node, (0,)) if node.target in linear else ()


def along_factors(node: Node, mixed: Sequence[int]) -> tuple[Factor, ...]:
    """Every dimension but the mixed ones, the same in each input and output."""
    inputs, outputs = len(tensor_inputs(node)), len(outputs_of(node))
    shape = shape_of(tensor_inputs(node)[0])
    return tuple(
        Factor((dim,) * inputs, (dim,) * outputs)
        for dim, extent in enumerate(shape)
        if dim not in mixed and extent > 1
    )


@rule_for(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
def _softmax_backward(node: Node) -> Rule:
    rank = len(shape_of(node))
    return Rule(along_factors(node, dims_of(node.args[2], rank)))


@rule_for(aten.topk.default, aten.sort.default, aten.sort.stable)
def _order(node: Node) -> Rule:
    rank = len(shape_of(tensor_inputs(node)[0]))
    place, name = (2, "dim") if node.target is aten.topk.default else (1, "dim")
    if node.target is aten.sort.stable:
        mixed = dims_of(node.kwargs.get("dim", -1), rank)
    else:
        mixed = dims_of(argument(node, place, name, -1), rank)
    return Rule(along_factors(node, mixed))
