"""Products of groups of rows, each with a matrix of its own: experts without a fixed capacity.

Rows are sorted by their group; `offs` says where each group ends. A rank that has some of the
matrices turns the rows round so that its own come first, computes those and leaves zeros elsewhere:
a part of a sum. Dimensions of the matrices are shared as in any product.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    RuleMaker,
    Strategy,
    linear_in,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten


ALIGNED = 16
"""Bytes of which the rows of what `_grouped_mm` takes are multiples."""


@rule_for(aten._grouped_mm.default)
def _grouped(node: Node) -> Rule | None:
    inputs = tensor_inputs(node)
    if len(inputs) != 3 or any(argument is not None for argument in node.args[3:4]):
        return None
    left, right = (shape_of(source) for source in inputs[:2])
    width = inputs[0].meta["val"].element_size()
    linear = linear_in(node, (0,), (1,))
    if (len(left), len(right)) == (2, 3):
        factors = _forward(left[1] * width // ALIGNED, right[2] * width // ALIGNED)
        return Rule(factors, linear, localise=_local_product, always=True)
    if (len(left), len(right)) == (2, 2):
        # Rows are the inner dimension: a matrix for each group comes out.
        factors = (
            Factor((0, None, None), (1,), units=left[0] * width // ALIGNED),
            Factor((None, 1, None), (2,), units=right[1] * width // ALIGNED),
            Factor((None, None, None), (0,), whole=True),
        )
        return Rule(factors, linear, localise=_local_matrices, always=True)
    return None


def _forward(inner: int = 0, outer: int = 0) -> tuple[Factor, ...]:
    """Of rows and matrices; the units of their dimensions."""
    return (
        Factor((None, 2, None), (1,), units=outer),
        Factor((1, 1, None), (None,), "sum", units=inner),
        Factor((None, 0, None), (None,), "sum", whole=True),
    )


def _fallback(node: Node) -> Rule:
    return Rule(_forward(), linear_in(node, (0,), (1,)), localise=_local_product)


def _fallback_backward(node: Node) -> Rule:
    """Of (rows, matrices, offs, gradient): gradients of rows and of matrices."""
    experts = Factor((None, 0, None, None), (None, 0), "sum", whole=True)
    inner = Factor((1, 1, None, None), (1, 1))
    outer = Factor((None, 2, None, 1), (None, 2), "sum")
    linear: tuple[Strategy, ...] = linear_in(node, (3,))
    return Rule((experts, inner, outer), linear, localise=_local_backward)


#: Operators that only other packages define: known by name.
BY_NAME: Mapping[str, RuleMaker] = {
    "transformers::grouped_mm_fallback": _fallback,
    "transformers::grouped_mm_fallback_backward": _fallback_backward,
}


@dataclass(frozen=True)
class _Turn:
    """Rows turned round so that those of this rank's groups come first.

    Attributes:
        there: row numbers, of the turned rows in the whole.
        back: of the whole rows in the turned ones.
        ends: where each of this rank's groups ends, in the turned rows.
        mine: which of the whole rows are of this rank's groups.
    """

    there: Any
    back: Any
    ends: Any
    mine: Any


def _turn(emit: Any, offs: Any, start: Any, groups: int, rows: int) -> _Turn:
    """`start`: the first of this rank's `groups`."""
    device = offs.meta["val"].device
    numbers = emit.call(aten.arange.default, rows, device=device)
    own = emit.call(aten.arange.default, groups, device=device)
    own = emit.call(aten.add.Tensor, own, start)
    ends = emit.call(aten.index_select.default, offs, 0, own)
    # The first group of all begins at row 0.
    begins = emit.call(aten.constant_pad_nd.default, offs, [1, 0], 0)
    begin = emit.call(
        aten.index_select.default, begins, 0, emit.call(aten.slice.Tensor, own, 0, 0, 1)
    )
    end = emit.call(aten.slice.Tensor, ends, 0, groups - 1, groups)
    there = emit.call(aten.remainder.Scalar, emit.call(aten.add.Tensor, numbers, begin), rows)
    back = emit.call(aten.remainder.Scalar, emit.call(aten.sub.Tensor, numbers, begin), rows)
    mine = emit.call(
        aten.bitwise_and.Tensor,
        emit.call(aten.ge.Tensor, numbers, begin),
        emit.call(aten.lt.Tensor, numbers, end),
    )
    ends = emit.call(aten.sub.Tensor, ends, begin)
    return _Turn(there, back, ends, emit.call(aten.unsqueeze.default, mine, 1))


def _turned_back(emit: Any, turn: _Turn, value: Any) -> Any:
    """Whole rows of turned ones, zero where other ranks have them."""
    rows = emit.call(aten.index_select.default, value, 0, turn.back)
    return emit.call(aten.where.self, turn.mine, rows, emit.scalar(0, rows))


def _local_product(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    groups = emit.input_shape(1)[0]
    start = emit.start(emit.inputs[1], 0, groups)
    rows, matrices, offs = _three(args, kwargs)
    if start is None:
        return _product(emit, node, rows, matrices, offs, args, kwargs)
    turn = _turn(emit, offs, start, groups, emit.input_shape(0)[0])
    own = emit.call(aten.index_select.default, rows, 0, turn.there)
    found = _product(emit, node, own, matrices, turn.ends, args, kwargs)
    return _turned_back(emit, turn, found)


def _local_matrices(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    groups = emit.output_shape(0)[0]
    start = emit.start(emit.outputs[0], 0, groups)
    left, right, offs = _three(args, kwargs)
    if start is None:
        return _product(emit, node, left, right, offs, args, kwargs)
    turn = _turn(emit, offs, start, groups, emit.input_shape(1)[0])
    left = emit.call(aten.index_select.default, left, 1, turn.there)
    right = emit.call(aten.index_select.default, right, 0, turn.there)
    return _product(emit, node, left, right, turn.ends, args, kwargs)


def _product(
    emit: Any,
    node: Node,
    left: Any,
    right: Any,
    offs: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if node.target is not aten._grouped_mm.default:
        return emit.call(node.target, left, right, offs)
    kind = kwargs.get("out_dtype", args[4] if len(args) > 4 else None)
    rest = () if kind is None else (None, kind)
    return emit.call(node.target, _laid(emit, left), _laid(emit, right), offs, *rest)


def _laid(emit: Any, value: Any) -> Any:
    """A matrix, or several, of which rows or columns begin where the operator wants them to."""
    example = value.meta["val"]
    width, strides = example.element_size(), example.stride()
    for inner, outer in ((-1, -2), (-2, -1)):
        extent = example.shape[inner]
        if (
            strides[inner] == 1
            and strides[outer] >= extent
            and not strides[outer] * width % ALIGNED
        ):
            return value
    rows = range(example.dim())
    order = [*rows[:-2], *reversed(rows[-2:])]
    turned = emit.call(aten.permute.default, value, order)
    laid = emit.call(aten.clone.default, turned, memory_format=torch.contiguous_format)
    return emit.call(aten.permute.default, laid, order)


def _local_backward(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    groups = emit.input_shape(1)[0]
    start = emit.start(emit.inputs[1], 0, groups)
    if start is None:
        return emit.call(node.target, *args, **kwargs)
    rows, matrices, offs, gradient = args
    turn = _turn(emit, offs, start, groups, emit.input_shape(0)[0])
    rows, gradient = (
        emit.call(aten.index_select.default, value, 0, turn.there) for value in (rows, gradient)
    )
    result = emit.call(node.target, rows, matrices, turn.ends, gradient)
    of_rows, of_matrices = (emit.call(operator.getitem, result, position) for position in (0, 1))
    return _turned_back(emit, turn, of_rows), of_matrices


def _three(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    return args[0], args[1], args[2] if len(args) > 2 else kwargs["offs"]
