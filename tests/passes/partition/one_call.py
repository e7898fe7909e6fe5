"""One operation as a graph, shared among simulated ranks in every way that its rule says."""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from deepcompile.capture import rank_ops
from deepcompile.cost.links import links_of
from deepcompile.cost.rates import rates_of
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import (
    Partial,
    Placement,
    Placements,
    Shard,
    placements_text,
)
from deepcompile.passes.partition.formulate import Choice
from deepcompile.passes.partition.lower import Lowering
from deepcompile.passes.partition.moves import Mover
from deepcompile.passes.partition.options import Option, Options
from deepcompile.passes.partition.problem import Solution
from deepcompile.passes.partition.simulate import simulate
from deepcompile.passes.partition.sites import Parameter, Sites
from deepcompile.passes.partition.strategy import outputs_of, tensor_inputs

RATES = rates_of("cuda", 90, 1)


@dataclass(frozen=True)
class Zeros:
    """An argument that the graph makes itself, by `full`: rules look at such."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """An operation with arguments.

    Attributes:
        target: the operator.
        args: tensors among them become inputs of the graph; the same tensor, one input.
        kwargs: likewise.
        compared: outputs that have a meaning; empty for all.
        bitwise: whether results must be equal to the bit.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    compared: tuple[int, ...] = ()
    bitwise: bool = False

    def __str__(self) -> str:
        def text(value: Any) -> str:
            if isinstance(value, Tensor):
                return str(list(value.shape)).replace(" ", "")
            if isinstance(value, list | tuple):
                return f"({','.join(map(text, value))})"
            return str(value)

        given = [*map(text, self.args), *(f"{k}={text(v)}" for k, v in self.kwargs.items())]
        return f"{self.target}({', '.join(given)})"


def call(
    target: Any,
    *args: Any,
    compared: Sequence[int] = (),
    bitwise: bool = False,
    **kwargs: Any,
) -> Call:
    return Call(target, args, kwargs, tuple(compared), bitwise)


class Shared:
    """A call on a mesh: its graph of one device, its options, and the check of each of them."""

    def __init__(self, given: Call, mesh: Mesh, pieces: bool = False) -> None:
        self.call = given
        self.mesh = mesh
        self.graph = Graph()
        self.mode = FakeTensorMode()
        self.values: dict[Node, Tensor] = {}
        inputs: dict[int, Node] = {}

        def to_node(value: Any) -> Any:
            if isinstance(value, Zeros):
                zeros = self.graph.call_function(torch.ops.aten.full.default, (value.shape, 0.0))
                zeros.kwargs = {"dtype": torch.float64}
                with self.mode:
                    zeros.meta["val"] = torch.zeros(value.shape, dtype=torch.float64)
                return zeros
            if not isinstance(value, Tensor):
                return value
            if id(value) not in inputs:
                node = inputs[id(value)] = self.graph.placeholder(f"x{len(inputs)}")
                node.meta["val"] = self.mode.from_tensor(value)
                self.values[node] = value
            return inputs[id(value)]

        args, kwargs = pytree.tree_map(to_node, (given.args, given.kwargs))
        self.node = self.graph.call_function(given.target, args, kwargs)
        plain = torch.fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
        with self.mode:
            self.node.meta["val"] = given.target(*plain[0], **plain[1])
        self.outputs = self._outputs()
        self.sinks = []
        for index, value in enumerate(outputs_of(self.node)):
            if value is not None:
                sink = self.graph.placeholder(f"y{index}")
                sink.meta["val"] = value
                self.sinks.append(sink)
        self.graph.output(tuple(self.outputs))
        self.plain_sites = Sites(self.graph, ())
        self.options = Options(self.plain_sites, mesh, RATES)
        if pieces:
            self._suggest_pieces()
        plain = pytree.tree_map(
            lambda v: torch.zeros(v.shape, dtype=torch.float64) if isinstance(v, Zeros) else v,
            (given.args, given.kwargs),
        )
        expected = given.target(*plain[0], **plain[1])
        several = isinstance(expected, tuple | list)
        self.expected = [v for v in (expected if several else [expected]) if isinstance(v, Tensor)]

    def _suggest_pieces(self) -> None:
        """Two equal and two unequal ones of each dimension of each tensor."""
        made = [(self.node, index) for index in range(len(outputs_of(self.node)))]
        for tensor in (*self.plain_sites.inputs_of(self.node), *made):
            value = outputs_of(tensor[0])[tensor[1]]
            for dim, extent in enumerate(() if value is None else value.shape):
                for first in (extent // 2, extent // 4):
                    if 0 < first < extent:
                        shard = Shard(dim, (first, extent - first))
                        self.options.candidates.suggest(tensor, shard)

    def _outputs(self) -> list[Node]:
        value = self.node.meta["val"]
        if not isinstance(value, tuple | list):
            return [self.node]
        found = []
        for index, item in enumerate(value):
            if isinstance(item, Tensor):
                one = self.graph.call_function(operator.getitem, (self.node, index))
                one.meta["val"] = item
                found.append(one)
        return found

    def choices(self) -> tuple[Option, ...]:
        return self.options.of(self.node)

    def mistake(self, option: Option, seed: int = 0) -> str | None:
        """Why a rank's part of the call is not a part of the call; None if it is."""
        sources = tensor_inputs(self.node)
        first: dict[Node, Placements] = {}
        for source, placements in zip(sources, option.inputs, strict=True):
            first.setdefault(source, placements)
        made = [
            placements
            for value, placements in zip(outputs_of(self.node), option.outputs, strict=True)
            if value is not None
        ]
        parameters = [
            *(
                Parameter(node.name, node, (), place, False)
                for node, place in first.items()
                if node in self.values
            ),
            *(
                Parameter(sink.name, sink, ((self.graph.output_node(), index),), place)
                for index, (sink, place) in enumerate(zip(self.sinks, made, strict=True))
            ),
        ]
        chosen = {p.name: p.placements for p in parameters if p.placements is not None}
        mover = mover_of(self.mesh)
        for source, placements in zip(sources, option.inputs, strict=True):
            mover.teach(tuple(source.meta["val"].shape), [placements])
        lowering = Lowering(
            Sites(self.graph, tuple(parameters)),
            self.mesh,
            self.mesh.names,
            Choice({self.node: option}, chosen, Solution((), 0.0, 0.0)),
            self.options.candidates.rules,
            mover,
        )
        local = lowering.run()
        feeds: list[list[Any]] = [[] for _ in range(self.mesh.ranks)]
        for node in self.graph.find_nodes(op="placeholder"):
            if node in self.values:
                parts = scattered(self.values[node], first[node], self.mesh, seed)
            else:
                parts = [None] * self.mesh.ranks
            for feed, part in zip(feeds, parts, strict=True):
                feed.append(part)
        results = simulate(local, feeds, self.mesh, self.mesh.names)
        for index, (expected, placements) in enumerate(zip(self.expected, made, strict=True)):
            if self.call.compared and index not in self.call.compared:
                continue
            single = any(v.dtype == torch.float32 for v in (expected, *self.values.values()))
            exact = self.call.bitwise or not expected.is_floating_point()
            near = 0.0 if self.call.bitwise else 1e-5 if single else 1e-9
            if expected.dtype == torch.bfloat16:
                near = 2e-2
            found = gathered([result[index] for result in results], placements, self.mesh, near)
            if isinstance(found, str):
                return f"output {index} {found}"
            close = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": near, "atol": near}
            try:
                torch.testing.assert_close(found, expected, equal_nan=True, **close)  # type: ignore
            except AssertionError as error:
                return f"output {index}: {str(error).splitlines()[0]}"
        return None


def mistakes(
    given: Call, mesh: Mesh, most: int = 1000, seed: int = 0, pieces: bool = False
) -> Iterator[str]:
    """Of the options of a call, or a sample of them; with `pieces`, of those in pieces."""
    shared = Shared(given, mesh, pieces)
    options = [option for option in shared.choices() if not pieces or _in_pieces(option)]
    if len(options) > most:
        options = random.Random(seed).sample(options, most)
    for option in options:
        try:
            mistake = shared.mistake(option, seed)
        except Exception as error:
            mistake = f"{type(error).__name__}: {error}"
        if mistake is not None:
            yield f"{given} on {mesh} as {option_text(option)}: {mistake}"


def _in_pieces(option: Option) -> bool:
    places = (place for placed in (*option.inputs, *option.outputs) for place in placed)
    return any(isinstance(place, Shard) and bool(place.pieces) for place in places)


def option_text(option: Option) -> str:
    inputs = "; ".join(map(placements_text, option.inputs))
    return f"[{inputs}] -> [{'; '.join(map(placements_text, option.outputs))}]"


def mover_of(mesh: Mesh) -> Mover:
    return Mover(mesh.sizes, tuple(links_of(mesh, "cuda")), RATES.bandwidth, RATES.launch)


def scattered(value: Tensor, placements: Placements, mesh: Mesh, seed: int = 0) -> list[Tensor]:
    """What each rank has of a whole tensor; random parts of it where it is partial."""
    random_numbers = torch.Generator().manual_seed(seed)
    parts = [value]
    for placement, ranks in zip(placements, mesh.sizes, strict=True):
        parts = [part for here in parts for part in _parts(here, placement, ranks, random_numbers)]
    return [part.clone(memory_format=torch.contiguous_format) for part in parts]


def _parts(
    value: Tensor, placement: Placement, ranks: int, random_numbers: torch.Generator
) -> list[Tensor]:
    if isinstance(placement, Shard):
        dim, pieces = placement.dim, placement.pieces
        return [rank_ops.part_of(value, dim, pieces, ranks, place) for place in range(ranks)]
    if not isinstance(placement, Partial):
        return [value] * ranks
    if not value.is_floating_point() or value.dtype == torch.bfloat16:
        # Few digits: sums and products of small whole numbers are exact.
        noise = [
            torch.randint(0, 2, value.shape, generator=random_numbers).to(value.dtype)
            for _ in range(ranks)
        ]
    else:
        noise = [
            torch.randn(value.shape, generator=random_numbers, dtype=torch.float64).to(value.dtype)
            for _ in range(ranks)
        ]
    if placement.kind == "sum":
        rest: Any = sum(noise[1:], torch.zeros_like(value))
        return [value - rest, *noise[1:]]
    # Somewhere is the value, on other ranks less (max) or more (min).
    owner = torch.randint(0, ranks, value.shape, generator=random_numbers)
    sign = -1 if placement.kind == "max" else 1
    return [
        torch.where(owner == rank, value, value + sign * noise[rank].abs()) for rank in range(ranks)
    ]


def gathered(
    values: Sequence[Tensor], placements: Placements, mesh: Mesh, near: float = 1e-9
) -> Tensor | str:
    """The whole tensor of what ranks have; a text if ranks differ that must not."""
    here = list(values)
    for placement, ranks in reversed(list(zip(placements, mesh.sizes, strict=True))):
        together = []
        for start in range(0, len(here), ranks):
            parts = here[start : start + ranks]
            if isinstance(placement, Shard):
                together.append(_joined(parts, placement))
            elif isinstance(placement, Partial):
                stacked = torch.stack(parts)
                reduce: dict[str, Callable[[], Tensor]] = {
                    "sum": lambda stacked=stacked: stacked.sum(0).to(stacked.dtype),
                    "max": lambda stacked=stacked: stacked.amax(0),
                    "min": lambda stacked=stacked: stacked.amin(0),
                }
                together.append(reduce[placement.kind]())
            else:
                for part in parts[1:]:
                    if not torch.allclose(
                        part.double(), parts[0].double(), rtol=near, atol=near, equal_nan=True
                    ):
                        return "differs on ranks that should have the same"
                together.append(parts[0])
        here = together
    return here[0]


def _joined(parts: Sequence[Tensor], placement: Shard) -> Tensor:
    dim, ranks = placement.dim, len(parts)
    pieces = placement.pieces or (parts[0].shape[dim] * ranks,)
    shares = [piece // ranks for piece in pieces]
    split = [part.split(shares, dim) for part in parts]
    columns = itertools.product(range(len(shares)), range(ranks))
    return torch.cat([split[rank][index] for index, rank in columns], dim)
