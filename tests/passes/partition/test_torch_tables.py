"""Our ways to share operations beside those that torch's DTensor knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import REPLICATE, Partial, Placement, Shard
from deepcompile.passes.partition.strategy import Strategy, divisible, outputs_of, tensor_inputs
from tests.passes.partition.one_call import Call, Shared
from tests.passes.partition.test_rules import FAMILIES

RANKS = 2

_EXTREMA = "maxima and minima wait to be reduced only through what keeps values as they are"
_TWICE = "one tensor taken twice would be taken in two placements"

#: By operator, why we do not allow all that torch does.
OMITTED: Mapping[str, str] = {
    "aten._native_batch_norm_legit_no_training.default": "its statistics are empty",
    "aten._to_copy.default": "sums are not rounded before all parts are there",
    "aten.add.Tensor": _EXTREMA,
    "aten.bucketize.Tensor": "boundaries are few",
    "aten.constant_pad_nd.default": _EXTREMA,
    "aten.div.Tensor": _TWICE,
    "aten.embedding_dense_backward.default": "wrong: how often an index occurs must be known",
    "aten.exp.default": _EXTREMA,
    "aten.flip.default": _EXTREMA,
    "aten.index_put.default": "wrong where values are as long as the shared dimension",
    "aten.index_select.default": _EXTREMA,
    "aten.maximum.default": _EXTREMA,
    "aten.minimum.default": _EXTREMA,
    "aten.mm.default": _TWICE,
    "aten.mul.Tensor": _TWICE,
    "aten.native_layer_norm_backward.default": "always taken apart",
    "aten.neg.default": _EXTREMA,
    "aten.relu.default": _EXTREMA,
    "aten.roll.default": _EXTREMA,
    "aten.sub.Tensor": _EXTREMA,
}


def torch_rows(given: Call) -> Iterator[list[Any]]:
    """Placements of outputs and tensor inputs on one axis, as torch's table has them."""
    tables = pytest.importorskip("torch.distributed.tensor")
    funcs = getattr(
        tables.DTensor._op_dispatcher.sharding_propagator, "op_single_dim_strategy_funcs", {}
    )
    info = funcs.get(given.target)
    if info is None:
        return
    from torch.distributed.tensor._dtensor_spec import TensorMeta

    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            return TensorMeta(value.shape, value.stride(), value.dtype)
        return value

    args = pytree.tree_map(described, given.args)
    kwargs = pytree.tree_map(described, given.kwargs)
    try:
        yield from info.func(given.target, args, kwargs)
    except (TypeError, AttributeError, AssertionError, NotImplementedError):
        # Tables change between versions of torch, and some want what a call does not have.
        return


def ours(place: Any) -> Placement | None:
    """One of torch's placements as ours; None for those that we do not have."""
    name = type(place).__name__
    if name == "Replicate":
        return REPLICATE
    if name in ("Shard", "_ShardingPlaceholder"):
        return Shard(place.dim)
    if name == "Partial" and place.reduce_op in ("sum", "max", "min"):
        return Partial(place.reduce_op)
    return None


def missing(given: Call) -> Iterator[Strategy]:
    """What torch allows, divides the shapes, and is not among our options."""
    try:
        shared = Shared(given, Mesh.of(RANKS, ()))
    except (AttributeError, TypeError):
        return
    inputs = [tuple(source.meta["val"].shape) for source in tensor_inputs(shared.node)]
    outputs = [tuple(value.shape) for value in shared.expected]
    real = [index for index, value in enumerate(outputs_of(shared.node)) if value is not None]
    known = {
        (tuple(option.outputs[i][0] for i in real), tuple(p[0] for p in option.inputs))
        for option in shared.choices()
    }
    for row in torch_rows(given):
        places = [ours(place) for place in row if place is not None]
        if None in places or len(places) != len(inputs) + len(outputs):
            continue
        made, taken = tuple(places[: len(outputs)]), tuple(places[len(outputs) :])
        strategy = Strategy(made, taken)  # type: ignore[arg-type]
        if any(
            isinstance(place, Shard) and place.dim >= len(shape)
            for place, shape in zip(places, [*outputs, *inputs], strict=True)
        ):
            continue
        if divisible(strategy, inputs, outputs, RANKS) is None and (made, taken) not in known:
            yield strategy


@pytest.mark.slow
def test_what_torch_allows_is_allowed_or_has_a_reason() -> None:
    torch.manual_seed(0)
    found: dict[str, set[str]] = {}
    for family in FAMILIES:
        for given in family():
            for strategy in missing(given):
                text = f"{_text(strategy.inputs)} -> {_text(strategy.outputs)}"
                found.setdefault(str(given.target), set()).add(text)
    for target, rows in sorted(found.items()):
        print(f"{target}: {OMITTED.get(target, 'no reason')}")
        print("".join(f"    {row}\n" for row in sorted(rows)))
    assert not set(found) - set(OMITTED)


def _text(places: tuple[Placement, ...]) -> str:
    return " ".join(map(str, places))
