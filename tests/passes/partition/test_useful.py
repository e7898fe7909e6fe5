"""Shards in pieces: those that an operation at either end can use stay, the others go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from deepcompile.ir.placements import Partial, Shard
from deepcompile.passes.partition.candidates import Candidates
from deepcompile.passes.partition.sites import Sites

RANKS = 4


def sites_of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Sites:
    graph = make_fx(function, tracing_mode="fake")(*(torch.zeros(shape) for shape in shapes)).graph
    return Sites(graph, ())


def calls(sites: Sites, target: Any) -> list[Node]:
    return [node for node in sites.steps() if node.target is target]


def pieces_of(candidates: Candidates, node: Node) -> set[Shard]:
    return set(candidates.of((node, 0)))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.view(2, 16, 4, 8).transpose(1, 2) for t in (q, k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def test_shards_inside_heads_go_where_attention_takes_whole_heads() -> None:
    def projected(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        q = x @ w
        return attention(q * q.cos(), q, q)

    sites = sites_of(projected, (32, 32), (32, 32))
    candidates = Candidates(sites, [RANKS])
    (product,) = calls(sites, torch.ops.aten.mm.default)
    assert pieces_of(candidates, product) == set()
    plain = {way.outputs[0] for way in candidates.strategies(product)}
    assert {Shard(0), Shard(1)} <= plain
    (cosine,) = calls(sites, torch.ops.aten.cos.default)
    assert Shard(1) in {way.outputs[0] for way in candidates.strategies(cosine)}


def test_a_fused_projection_keeps_the_pieces_that_become_whole_heads() -> None:
    def projected(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return attention(*(x @ w).split(32, dim=1))

    sites = sites_of(projected, (32, 32), (32, 96))
    candidates = Candidates(sites, [RANKS])
    (product,) = calls(sites, torch.ops.aten.mm.default)
    assert Shard(1, (32, 32, 32)) in pieces_of(candidates, product)
    weight = {way.inputs[1] for way in candidates.strategies(product)}
    assert Shard(1, (32, 32, 32)) in weight


def test_the_sequence_inside_flattened_tokens_stays_between_products() -> None:
    def layers(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = (x.view(32, 32) @ w).view(2, 16, 32)
        y = y * y.mean(-1, keepdim=True)
        return y.view(32, 32) @ w @ w

    sites = sites_of(layers, (2, 16, 32), (32, 32))
    candidates = Candidates(sites, [RANKS])
    first, second, _ = calls(sites, torch.ops.aten.mm.default)
    assert pieces_of(candidates, first) == {Shard(0, (16, 16))}
    assert Shard(0, (16, 16)) in {way.inputs[0] for way in candidates.strategies(second)}


def test_partial_maxima_are_only_behind_what_makes_them() -> None:
    def maxima(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.amax(1).view(8, 4), x.sum(1).view(8, 4)

    sites = sites_of(maxima, (32, 32))
    candidates = Candidates(sites, [RANKS])
    largest, total = calls(sites, torch.ops.aten.view.default)
    assert Partial("max") in {way.outputs[0] for way in candidates.strategies(largest)}
    assert Partial("max") not in {way.outputs[0] for way in candidates.strategies(total)}
    assert Partial("sum") in {way.outputs[0] for way in candidates.strategies(total)}
