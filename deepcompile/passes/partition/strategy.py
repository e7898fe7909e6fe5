"""What a rule says of one node on one axis of the mesh: the ways in which ranks can share its work.

Most of it is *factors*. A factor is a dimension of the computation, like `m`, `n` and `k` of a
matrix product: where it is sharded, every tensor that has it is sharded there, a tensor that does
not have it is whole on every rank, and a result that sums over it is partial. What factors cannot
say (linear operations on partial sums, views) is written out as strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from deepcompile.ir.placements import (
    REPLICATE,
    Partial,
    PartialKind,
    Placement,
    Shard,
    divides,
)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way on one axis.

    Attributes:
        outputs: of each tensor that the node makes, in order.
        inputs: of each tensor that it takes, in the order of `tensor_inputs`.
        units: what ranks share in the end, where a dimension consists of so many equal units that
            stay together, as the channels of a group; 0: each element is one.
    """

    outputs: tuple[Placement, ...]
    inputs: tuple[Placement, ...]
    units: int = 0

    @property
    def shares_work(self) -> bool:
        """Whether a rank computes a part only."""
        return any(isinstance(placement, Shard) for placement in (*self.outputs, *self.inputs))


@dataclass(frozen=True, slots=True)
class Factor:
    """A dimension of the computation that ranks can share.

    Attributes:
        inputs: the dimension of each tensor input that it is, None where an input does not have it.
        outputs: the same of each output.
        reduced: what reduces the parts of outputs that do not have it; None if nothing does, then
            an output without it is the same on every rank.
        whole: whether it cannot be sharded in pieces.
        units: see `Strategy`.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    reduced: PartialKind | None = None
    whole: bool = False
    units: int = 0

    def strategy(self, pieces: tuple[int, ...] = ()) -> Strategy:
        """The factor sharded, in pieces or not."""
        missing: Placement = Partial(self.reduced) if self.reduced else REPLICATE
        return Strategy(
            tuple(missing if dim is None else Shard(dim, pieces) for dim in self.outputs),
            tuple(REPLICATE if dim is None else Shard(dim, pieces) for dim in self.inputs),
            self.units,
        )


@dataclass(frozen=True)
class Relation:
    """How a placement of one tensor input makes that of the only output, where factors do not say.

    Attributes:
        forward: the output's placement for the input's, None where there is none.
        backward: the input's placement for the output's.
    """

    forward: Callable[[Shard], Shard | None]
    backward: Callable[[Shard], Shard | None]


@dataclass(frozen=True)
class Rule:
    """What is known of one node.

    Attributes:
        factors: see there.
        strategies: further ones, by hand; those without Shard hold for any number of ranks.
        relation: for operations that have one tensor input and one output and factors for
            neither; every shard of one is then a strategy if the relation knows the other.
        pieces: shards in pieces that the node gives rise to, by input (first) and output (second).
        localise: how a rank computes its part; None: the same operation on its parts of tensors.
        always: whether `localise` is asked too where every rank computes all.
        together: whether strategies of all tensor axes, outermost first, can be used at once,
            where that is more than each tensor's placements say; None: always.
    """

    factors: tuple[Factor, ...] = ()
    strategies: tuple[Strategy, ...] = ()
    relation: Relation | None = None
    pieces: tuple[Mapping[int, tuple[Shard, ...]], Mapping[int, tuple[Shard, ...]]] = ({}, {})
    localise: Localise | None = None
    always: bool = False
    together: Callable[[Sequence[Strategy]], bool] | None = None


Localise = Callable[[Any, Node, tuple[Any, ...], dict[str, Any]], Any]
"""(the emitter with the placements of the node, the node, local args, local kwargs) -> result.

The result is a node, or a tuple with a node (or None) for each output.
"""


RuleMaker = Callable[[Node], Rule | None]

_RULES: dict[Any, RuleMaker] = {}


def rule_for(*targets: Any) -> Callable[[RuleMaker], RuleMaker]:
    """Register what makes the rule of nodes that call one of `targets`, overloads or packets."""

    def register(maker: RuleMaker) -> RuleMaker:
        for target in targets:
            overloads = getattr(target, "overloads", None)
            for known in [getattr(target, name) for name in overloads()] if overloads else [target]:
                _RULES[known] = maker
        return maker

    return register


def has_rule(target: Any) -> bool:
    return target in _RULES


def registered_rule(node: Node) -> Rule | None:
    """The rule of a node by its target alone; None if there is none or it does not apply."""
    maker = _RULES.get(node.target)
    return maker(node) if maker is not None else None


def tensor_of(value: Any) -> torch.Tensor | None:
    """The tensor of an example value that is one."""
    return value if isinstance(value, torch.Tensor) else None


def value_of(node: Node) -> Any:
    return node.meta.get("val")


def outputs_of(node: Node) -> tuple[torch.Tensor | None, ...]:
    """Example values of what a node makes, one entry an output."""
    value = value_of(node)
    if isinstance(value, tuple | list):
        return tuple(tensor_of(item) for item in value)
    return (tensor_of(value),)


def tensor_inputs(node: Node) -> list[Node]:
    """Nodes of tensors in the arguments, in order, as often as they occur."""
    found: list[Node] = []
    waiting: list[Any] = [node.kwargs, node.args]
    while waiting:
        argument = waiting.pop()
        if isinstance(argument, Node):
            if isinstance(argument.meta.get("val"), torch.Tensor):
                found.append(argument)
        elif isinstance(argument, _SEQUENCES):
            waiting.extend(reversed(argument))
        elif isinstance(argument, dict):
            waiting.extend(reversed(argument.values()))
    return found


_SEQUENCES = (tuple, list)


def shape_of(node: Node) -> tuple[int, ...]:
    """Of the one tensor that a node makes; symbolic extents as they are."""
    return tuple(node.meta["val"].shape)


def replicated(node: Node) -> Strategy:
    """Every rank does all the work."""
    return Strategy((REPLICATE,) * len(outputs_of(node)), (REPLICATE,) * len(tensor_inputs(node)))


def linear_in(
    node: Node, *groups: Sequence[int], kinds: Sequence[PartialKind] = ("sum",)
) -> tuple[Strategy, ...]:
    """Strategies of a node that is linear: partial inputs, by position, give partial outputs.

    Each group is a set of inputs in which the node is jointly linear; the others are whole.
    """
    count, outputs = len(tensor_inputs(node)), len(outputs_of(node))
    return tuple(
        Strategy(
            (Partial(kind),) * outputs,
            tuple(Partial(kind) if i in group else REPLICATE for i in range(count)),
        )
        for group in groups
        for kind in kinds
        if group
    )


def divisible(
    strategy: Strategy,
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int] | None],
    ranks: int,
) -> str | None:
    """Why ranks cannot share equally; None if they can."""
    if strategy.units % ranks:
        return f"{strategy.units} groups are not divisible by {ranks}"
    pairs = [
        *zip(inputs, strategy.inputs, strict=True),
        *zip(outputs, strategy.outputs, strict=True),
    ]
    for shape, placement in pairs:
        if shape is None or not isinstance(placement, Shard):
            continue
        extent = shape[placement.dim]
        if not isinstance(extent, int):
            return f"dimension {placement.dim} has the symbolic extent {extent}"
        if not divides(extent, placement, ranks):
            return f"dimension {placement.dim} of extent {extent} is not divisible by {ranks}"
    return None


def enumerate_strategies(
    node: Node, rule: Rule | None, shards: Callable[[int, bool], Iterable[Shard]]
) -> Iterator[Strategy]:
    """All strategies of a node, the one that replicates first, each once; unchecked for division.

    Truth values have no parts of sums.

    Args:
        node: of the graph.
        rule: None for a node that nothing is known of.
        shards: candidates (plain and in pieces) of an input (position, False) or output
            (position, True).
    """
    seen: dict[Strategy, None] = {replicated(node): None}
    truths = tuple(_is_truth(value) for value in outputs_of(node))
    taken = tuple(_is_truth(tensor_of(value_of(source))) for source in tensor_inputs(node))
    if rule is not None:
        for factor in rule.factors:
            known: dict[tuple[int, ...], None] = {(): None}
            if not factor.whole:
                for is_output, dims in ((False, factor.inputs), (True, factor.outputs)):
                    for position, dim in enumerate(dims):
                        if dim is not None:
                            known |= {
                                s.pieces: None for s in shards(position, is_output) if s.dim == dim
                            }
            for pieces in known:
                seen.setdefault(factor.strategy(pieces))
        if rule.relation is not None:
            for shard in shards(0, False):
                out = rule.relation.forward(shard)
                if out is not None:
                    seen.setdefault(Strategy((out,), (shard,)))
            for shard in shards(0, True):
                source = rule.relation.backward(shard)
                if source is not None:
                    seen.setdefault(Strategy((shard,), (source,)))
        for strategy in rule.strategies:
            seen.setdefault(strategy)
    for strategy in seen:
        pairs = (
            *zip(strategy.outputs, truths, strict=True),
            *zip(strategy.inputs, taken, strict=True),
        )
        if not any(truth and isinstance(placement, Partial) for placement, truth in pairs):
            yield strategy


def _is_truth(value: torch.Tensor | None) -> bool:
    return value is not None and value.dtype == torch.bool
