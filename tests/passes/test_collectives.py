"""Passes leave collectives as they are: none more, none fewer, in the same order."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from deepcompile.ir.collectives import communicates
from deepcompile.passes.canonicalise import Canonicalise
from deepcompile.passes.fuse_rows import FuseRows
from tests.passes.collective_graphs import SHAPE, Building
from tests.passes.conftest import apply_pass

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


def after_passes(graph: GraphModule) -> list[Node]:
    graph = apply_pass(Canonicalise(), graph).after
    return list(apply_pass(FuseRows(), graph).after.graph.nodes)


def collectives(nodes: list[Node]) -> list[str]:
    return [str(node.target) for node in nodes if communicates(node.target)]


def test_equal_collectives_are_neither_shared_nor_dropped() -> None:
    add = Building(1)
    x = add(aten.exp.default, add.inputs[0])
    waits = [
        add(c10d.wait_tensor.default, add(c10d.all_reduce.default, x, "sum", "0")) for _ in range(3)
    ]
    graph = add.done(add(aten.mul.Tensor, waits[0], waits[1]))  # nobody reads the third
    assert collectives(after_passes(graph)) == collectives(list(graph.graph.nodes))


def test_what_is_read_by_collectives_is_still_shared() -> None:
    add = Building(1)
    sent = [add(aten.exp.default, add.inputs[0]) for _ in range(2)]
    ends = [
        add(c10d.wait_tensor.default, add(c10d.all_reduce.default, x, "sum", "0")) for x in sent
    ]
    views = [add(aten.view.default, end, [SHAPE[1], SHAPE[0]]) for end in [ends[0], *ends]]
    sines = [add(aten.sin.default, x) for x in views]
    total = add(aten.add.Tensor, add(aten.add.Tensor, sines[0], sines[1]), sines[2])
    graph = apply_pass(Canonicalise(), add.done(total)).after
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(aten.exp.default) == 1
    assert targets.count(aten.sin.default) == 2


def test_no_kernel_delays_a_launch_past_the_wait_for_another() -> None:
    """`exp` and `mul` would be one kernel, which could not start before the wait."""
    add = Building(2)
    x, y = add.inputs
    first = add(c10d.all_reduce.default, y, "sum", "0")
    sent = add(aten.exp.default, x)
    second = add(c10d.all_gather_into_tensor.default, sent, 2, "0")
    product = add(aten.mul.Tensor, sent, add(c10d.wait_tensor.default, first))
    graph = add.done(product, add(aten.sin.default, add(c10d.wait_tensor.default, second)))
    assert collectives(after_passes(graph)) == collectives(list(graph.graph.nodes))


def test_what_computes_between_a_launch_and_its_wait_still_does() -> None:
    add = Building(2)
    x, y = add.inputs
    launched = add(c10d.all_gather_into_tensor.default, add(aten.exp.default, x), 2, "0")
    product = add(aten.mm.default, x, add(aten.permute.default, y, [1, 0]))
    whole = add(c10d.wait_tensor.default, launched)
    graph = add.done(add(aten.sin.default, product), add(aten.cos.default, whole))
    order = [str(node.target) for node in after_passes(graph)]
    places = [
        order.index(str(target))
        for target in (
            c10d.all_gather_into_tensor.default,
            aten.mm.default,
            c10d.wait_tensor.default,
        )
    ]
    assert places == sorted(places)
