"""Products of matrices and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PARTIAL
from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    Strategy,
    linear_in,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


@rule_for(aten.mm.default)
def _mm(node: Node) -> Rule:
    factors = (
        Factor((0, None), (0,)),
        Factor((None, 1), (1,)),
        Factor((1, 0), (None,), "sum"),
    )
    linear = () if node.args[0] is node.args[1] else linear_in(node, (0,), (1,))
    return Rule(factors, linear)


@rule_for(aten.bmm.default)
def _bmm(node: Node) -> Rule:
    factors = (
        Factor((0, 0), (0,)),
        Factor((1, None), (1,)),
        Factor((None, 2), (2,)),
        Factor((2, 1), (None,), "sum"),
    )
    linear = () if node.args[0] is node.args[1] else linear_in(node, (0,), (1,))
    return Rule(factors, linear)


@rule_for(aten.addmm.default)
def _addmm(node: Node) -> Rule:
    bias, shape = shape_of(tensor_inputs(node)[0]), shape_of(node)
    factors = (
        Factor((_bias_dim(bias, shape, 0), 0, None), (0,)),
        Factor((_bias_dim(bias, shape, 1), None, 1), (1,)),
    )
    # What is added once must be a part of the sum too: a partial bias.
    split = Factor((None, 1, 0), (None,), "sum").strategy()
    inner = Strategy(split.outputs, (PARTIAL, *split.inputs[1:]))
    linear = (*linear_in(node, (0, 1), (0, 2)), inner)
    return Rule(factors, linear)


@rule_for(aten.baddbmm.default)
def _baddbmm(node: Node) -> Rule:
    bias, shape = shape_of(tensor_inputs(node)[0]), shape_of(node)
    factors = (
        Factor((_bias_dim(bias, shape, 0), 0, 0), (0,)),
        Factor((_bias_dim(bias, shape, 1), 1, None), (1,)),
        Factor((_bias_dim(bias, shape, 2), None, 2), (2,)),
    )
    split = Factor((None, 2, 1), (None,), "sum").strategy()
    inner = Strategy(split.outputs, (PARTIAL, *split.inputs[1:]))
    return Rule(factors, (*linear_in(node, (0, 1), (0, 2)), inner))


def _bias_dim(bias: tuple[int, ...], shape: tuple[int, ...], dim: int) -> int | None:
    place = dim - (len(shape) - len(bias))
    return place if place >= 0 and bias[place] == shape[dim] > 1 else None


@rule_for(aten.convolution.default)
def _convolution(node: Node) -> Rule:
    transposed, groups = bool(node.args[6]), int(node.args[8])  # type: ignore[arg-type]
    bias: tuple[int | None, ...] = (0,) if isinstance(node.args[2], Node) else ()
    factors = [Factor((0, None, *_none(bias)), (0,))]
    strategies: list[Strategy] = []
    if groups == 1:
        out, within = (1, 0) if transposed else (0, 1)
        factors.append(Factor((None, out, *bias), (1,)))
        split = Factor((1, within, *_none(bias)), (None,), "sum").strategy()
        # What is added once must be a part of the sum too: a partial bias.
        taken = (*split.inputs[:2], *((PARTIAL,) if bias else ()))
        strategies.append(Strategy(split.outputs, taken))
    else:
        # Channels, of which the weight has those of a group together, go with their groups.
        factors.append(Factor((1, 0, *bias), (1,), whole=True, units=groups))
    strategies += linear_in(node, *(((0, 2), (1, 2)) if bias else ((0,), (1,))))
    return Rule(tuple(factors), tuple(strategies), localise=_local_convolution)


def _none(dims: tuple[int | None, ...]) -> tuple[None, ...]:
    return (None,) * len(dims)


def _local_convolution(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As many groups as are here."""
    return emit.call(node.target, *args[:8], _groups(emit, node, 0, int(args[8])), **kwargs)


def _groups(emit: Any, node: Node, position: int, groups: int) -> int:
    """How many of the groups of channels of an input are here."""
    if groups == 1:
        return 1
    channels = shape_of(tensor_inputs(node)[position])[1]
    return groups * emit.input_shape(position)[1] // channels


@rule_for(aten.convolution_backward.default)
def _convolution_backward(node: Node) -> Rule:
    transposed, groups = bool(node.args[7]), int(node.args[9])  # type: ignore[arg-type]
    factors = [Factor((0, 0, None), (0, None, None), "sum")]
    strategies: list[Strategy] = []
    if groups == 1:
        out, within = (1, 0) if transposed else (0, 1)
        # The bias' gradient is as long as there are output channels.
        factors.append(Factor((1, None, out), (None, out, 0), "sum"))
        split = Factor((None, 1, within), (1, within, None)).strategy()
        strategies.append(split)
    else:
        factors.append(Factor((1, 1, 0), (1, 0, 0), whole=True, units=groups))
    return Rule(
        tuple(factors),
        (*strategies, *linear_in(node, (0,))),
        localise=_local_convolution_backward,
    )


def _local_convolution_backward(
    emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    changed = list(args)
    if node.args[3] is not None:
        changed[3] = [emit.input_shape(0)[1]]
    changed[9] = _groups(emit, node, 1, int(args[9]))
    return emit.call(node.target, *changed, **kwargs)
