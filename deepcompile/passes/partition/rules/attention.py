"""Scaled dot-product attention: batch and heads are factors.

Where keys and values have fewer heads than queries, each of theirs serves a group of those. Heads
are shared where each rank has whole groups; or keys and values are whole on every rank, which takes
the heads that its queries need. So ranks may be more than there are heads of keys.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import PARTIAL, REPLICATE, Placement, Shard
from deepcompile.passes.partition.strategy import (
    Factor,
    Rule,
    Strategy,
    outputs_of,
    rule_for,
    shape_of,
    tensor_inputs,
)

aten = torch.ops.aten

_QUERIES = frozenset({"query", "grad_out", "grad_out_", "out", "logsumexp"})
_KEYS = frozenset({"key", "value"})
_MASKS = frozenset({"attn_mask", "attn_bias"})


@rule_for(aten._scaled_dot_product_flash_attention_for_cpu.default)
@rule_for(aten._scaled_dot_product_flash_attention.default)
@rule_for(aten._scaled_dot_product_efficient_attention.default)
@rule_for(aten._scaled_dot_product_cudnn_attention.default)
def _attention(node: Node) -> Rule | None:
    # Output and the logarithm of sums; the others are seeds and lengths.
    return _rule(node, ["query", "query"])


@rule_for(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
@rule_for(aten._scaled_dot_product_flash_attention_backward.default)
@rule_for(aten._scaled_dot_product_efficient_attention_backward.default)
@rule_for(aten._scaled_dot_product_cudnn_attention_backward.default)
def _attention_backward(node: Node) -> Rule | None:
    return _rule(node, ["query", "key", "value", "attn_bias"])


def _rule(node: Node, results: Sequence[str]) -> Rule | None:
    """`results` says of each of the first outputs which argument it is like."""
    if _drops(node):
        return None
    names = _names(node)
    shapes = [shape_of(source) for source in tensor_inputs(node)]
    sizes = dict(zip(names, shapes, strict=True))
    values = outputs_of(node)
    made: list[tuple[str, tuple[int, ...]]] = [
        (name, tuple(value.shape)) if value is not None else ("", ())
        for name, value in zip([*results, *[""] * len(values)], values, strict=False)
    ]
    taken = list(zip(names, shapes, strict=True))
    backward = len(results) > 2
    heads, few = sizes["query"][1], sizes["key"][1]
    factors = tuple(
        Factor(
            tuple(_dim(name, shape, dim) for name, shape in taken),
            tuple(_dim(name, shape, dim) for name, shape in made),
            "sum" if backward else None,
            whole=dim == 1 and heads != few,
            units=few if dim == 1 and heads != few else 0,
        )
        for dim in (0, 1)
    )
    if heads == few:
        return Rule(factors)
    queries, keys = names.index("query"), names.index("key")
    return Rule(
        factors,
        (_keys_whole(taken, made),),
        localise=_with_own_keys,
        together=lambda chosen: _in_order(chosen, queries, keys),
    )


def _dim(name: str, shape: Sequence[int], dim: int) -> int | None:
    """`dim` where a tensor of that name has it: batch or heads."""
    if name in _MASKS:
        return dim if len(shape) == 4 and shape[dim] > 1 else None
    return dim if name in _QUERIES | _KEYS else None


def _keys_whole(
    taken: Sequence[tuple[str, Sequence[int]]], made: Sequence[tuple[str, Sequence[int]]]
) -> Strategy:
    """Heads of queries shared, those of keys not; each rank has a part of the keys' gradients."""

    def placement(name: str, shape: Sequence[int], of_keys: Placement) -> Placement:
        if name in _KEYS:
            return of_keys
        return REPLICATE if _dim(name, shape, 1) is None else Shard(1)

    return Strategy(
        tuple(placement(name, shape, PARTIAL) for name, shape in made),
        tuple(placement(name, shape, REPLICATE) for name, shape in taken),
    )


def _in_order(chosen: Sequence[Strategy], queries: int, keys: int) -> bool:
    """Whether axes that share heads of keys come before those that share heads of queries only.

    Else a rank's part of the keys does not hold what its queries need.
    """
    whole = False
    for strategy in chosen:
        if strategy.inputs[queries] == Shard(1):
            if whole and strategy.inputs[keys] == Shard(1):
                return False
            whole = whole or strategy.inputs[keys] == REPLICATE
    return True


def _with_own_keys(emit: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = _names(node)
    queries, keys = names.index("query"), names.index("key")
    shapes = [shape_of(source) for source in tensor_inputs(node)]
    group = shapes[queries][1] // shapes[keys][1]
    local = emit.input_shape(queries)[1], emit.input_shape(keys)[1]
    if local[0] == group * local[1]:
        return emit.call(node.target, *args, **kwargs)
    index = _heads_of_keys(emit, node, queries, keys, group)
    known = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    own = [
        emit.call(aten.index_select.default, value, 1, index) if name in _KEYS else value
        for name, value in zip(known, args, strict=False)
    ]
    result = emit.call(node.target, *own, **kwargs)
    if "grad" not in known[0]:
        return result
    gradients: list[Any] = [
        emit.call(operator.getitem, result, position) if value is not None else None
        for position, value in enumerate(outputs_of(node))
    ]
    for position in (1, 2):
        here = gradients[position]
        shape = list(here.meta["val"].shape)
        shape[1] = local[1]
        nothing = emit.call(aten.new_zeros.default, here, shape)
        gradients[position] = emit.call(aten.index_add.default, nothing, 1, index, here)
    return tuple(gradients)


def _heads_of_keys(emit: Any, node: Node, queries: int, keys: int, group: int) -> Any:
    """Which heads of keys this rank's queries need: in whole groups, one, or one for each.

    They are counted from the first that is here.
    """
    heads, extent = emit.input_shape(queries)[1], emit.input_shape(keys)[1]
    start = emit.start(emit.inputs[queries], 1, heads)
    count = max(1, heads // group) if heads % group == 0 or group % heads == 0 else 0
    here = emit.call(aten.arange.default, count or heads, device=start.meta["val"].device)
    if count:
        start = emit.call(aten.div.Scalar_mode, start, group, rounding_mode="floor")
        index = emit.call(aten.add.Tensor, here, start)
    else:
        index = emit.call(aten.add.Tensor, here, start)
        index = emit.call(aten.div.Scalar_mode, index, group, rounding_mode="floor")
    first = emit.start(emit.inputs[keys], 1, extent)
    return index if first is None else emit.call(aten.sub.Tensor, index, first)


def _names(node: Node) -> list[str]:
    """Of the tensor inputs, those of the operator's arguments."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = [*zip((a.name for a in arguments), node.args, strict=False), *node.kwargs.items()]
    return [
        name
        for name, value in given
        if isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)
    ]


def _drops(node: Node) -> bool:
    """Whether random numbers are drawn inside, which differ where heads are sharded."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index("dropout_p") if "dropout_p" in names else -1
    value: Any = node.kwargs.get("dropout_p", 0.0)
    if 0 <= place < len(node.args):
        value = node.args[place]
    return bool(value)
