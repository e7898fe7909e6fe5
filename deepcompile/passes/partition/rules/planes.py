"""Operations on images that work on each plane alone: pooling and resampling."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

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


def _planes(node: Node, rank: int) -> tuple[Factor, ...]:
    """Batch and channels, what is in front of the last `rank` dimensions."""
    inputs, outputs = len(tensor_inputs(node)), len(outputs_of(node))
    shape = shape_of(tensor_inputs(node)[0])
    return tuple(
        Factor((dim,) * inputs, (dim,) * outputs)
        for dim in range(len(shape) - rank)
        if shape[dim] > 1
    )


@rule_for(aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default)
def _maximum(node: Node) -> Rule:
    return Rule(_planes(node, 2))


@rule_for(aten.max_pool3d_with_indices.default)
def _maximum_of_volumes(node: Node) -> Rule:
    return Rule(_planes(node, 3))


@rule_for(aten.max_pool3d_with_indices_backward.default)
def _maximum_of_volumes_backward(node: Node) -> Rule:
    return Rule(_planes(node, 3), linear_in(node, (0,)))


@rule_for(
    aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default, aten.upsample_nearest2d.default
)
@rule_for(aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default)
@rule_for(aten._upsample_nearest_exact2d.default, aten._upsample_bilinear2d_aa.default)
def _linear(node: Node) -> Rule:
    return Rule(_planes(node, 2), linear_in(node, (0,)))


@rule_for(aten.max_pool2d_with_indices_backward.default, aten.adaptive_max_pool2d_backward.default)
@rule_for(aten.avg_pool2d_backward.default, aten._adaptive_avg_pool2d_backward.default)
def _linear_of_image(node: Node) -> Rule:
    return Rule(_planes(node, 2), linear_in(node, (0,)))


@rule_for(aten.upsample_nearest2d_backward.default, aten.upsample_bilinear2d_backward.default)
@rule_for(aten.upsample_bicubic2d_backward.default)
@rule_for(aten._upsample_nearest_exact2d_backward.default)
@rule_for(aten._upsample_bilinear2d_aa_backward.default)
def _resampling_backward(node: Node) -> Rule:
    return Rule(_planes(node, 2), linear_in(node, (0,)), localise=_local_backward)


def _local_backward(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return emit.call(node.target, *args[:2], list(emit.output_shape(0)), *args[3:], **kwargs)


@rule_for(aten.grid_sampler_2d.default)
def _grid(node: Node) -> Rule:
    """Each image has a grid of its own, for all its channels."""
    return Rule((Factor((0, 0), (0,)), Factor((1, None), (1,))), linear_in(node, (0,)))
