"""`batch-updates`: which updates become rows of one batch, and that they mean the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from deepcompile.ir.batch_op import BatchOp
from deepcompile.ir.graph_parser import parse_graph
from deepcompile.ir.graph_printer import print_graph
from deepcompile.passes.batch_updates import BatchUpdates
from deepcompile.pipeline.execute import Agreement, compare_graphs

from .conftest import Applied, Capture, apply_pass

SHAPES = ((4, 6), (3,), (2, 5, 2), (), (1,))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def captured(function: Callable[..., Any], *args: Any) -> Applied:
    """The pass on the graph of one function."""
    capture = Capture(BatchUpdates())
    with torch.no_grad():
        capture.compile(function, fullgraph=True)(*args)
    (applied,) = capture.applied
    agreement = compare_graphs(applied.before, applied.after)
    assert isinstance(agreement, Agreement), agreement
    assert agreement.max_error == 0
    return applied


def batches(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if isinstance(node.target, BatchOp)]


def rows(graph: GraphModule) -> list[int]:
    """The number of rows of each batch."""
    return [len(node.args[1][0]) for node in batches(graph)]  # type: ignore[arg-type,index]


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes or SHAPES]


def descend(params: list[Tensor], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.sub_(g * 0.1)


def test_updates_of_any_shape_become_rows_of_one_batch() -> None:
    applied = captured(
        descend, tensors((4, 6), (3,), (2, 5, 2), (1,)), tensors((4, 6), (3,), (2, 5, 2), (1,))
    )
    assert rows(applied.after) == [4]
    assert [n.op for n in applied.after.graph.nodes if n.op == "call_function"] == ["call_function"]
    assert applied.result.stats == {"batches": 1, "rows": 4}


def test_single_values_are_columns_and_shared_values() -> None:
    def step(params: list[Tensor], counts: list[Tensor], rate: Tensor) -> None:
        for p, count in zip(params, counts, strict=True):
            count.add_(1)
            p.mul_(1 - rate / count)

    params = tensors((4, 6), (3,), (7,))
    applied = captured(step, params, [torch.tensor(2.0) for _ in params], torch.tensor(0.5))
    (node,) = batches(applied.after)
    shared, columns = node.args
    assert len(shared) == 1  # type: ignore[arg-type]
    assert sorted(node.target.flat) == [False, True]  # type: ignore[union-attr]
    assert [len(column) for column in columns] == [3, 3]  # type: ignore[arg-type,union-attr]


def test_updates_with_other_numbers_or_dtypes_are_other_batches() -> None:
    def step(params: list[Tensor]) -> None:
        for number, p in enumerate(params):
            p.mul_(0.5 if number % 2 else 0.25)

    assert rows(captured(step, tensors((2,), (3,), (4,), (5,))).after) == [2, 2]
    mixed = [
        t.to(d)
        for t, d in zip(
            tensors((2,), (3,), (4,), (5,)), [torch.float32, torch.float64] * 2, strict=True
        )
    ]
    applied = captured(lambda params: [p.mul_(2) for p in params] and None, mixed)
    assert rows(applied.after) == [2, 2]


def test_lists_and_loops_give_the_same_batches() -> None:
    def listed(params: list[Tensor], grads: list[Tensor]) -> None:
        torch._foreach_mul_(params, 0.9)
        torch._foreach_addcmul_(params, grads, grads, value=0.5)
        torch._foreach_lerp_(params, grads, 0.1)
        torch._foreach_sqrt_(grads)

    shapes = ((4, 6), (3,), (5,))
    assert rows(captured(listed, tensors(*shapes), tensors(*shapes)).after) == [3]


def test_results_come_back_in_the_order_of_the_graph() -> None:
    def step(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        made = []
        for p, g in zip(params, grads, strict=True):
            m = g * 3
            p.sub_(m)
            made += [m, m + p]
        return made

    applied = captured(step, tensors((4, 6), (3,)), tensors((4, 6), (3,)))
    (node,) = batches(applied.after)
    assert [tuple(v.shape) for v in node.meta["val"]] == [(4, 6), (4, 6), (3,), (3,)]


def test_dense_layouts_other_than_row_major_are_flattened_too() -> None:
    params = [torch.randn(4, 6).t(), torch.randn(5, 3).t()]
    assert rows(
        captured(descend, params, [torch.randn(4, 6).t(), torch.randn(5, 3).t()]).after
    ) == [2]


def test_what_hangs_together_otherwise_stays() -> None:
    def with_norm(params: list[Tensor], grads: list[Tensor]) -> None:
        for p, g in zip(params, grads, strict=True):
            p.sub_(g / g.norm())

    def with_common_norm(params: list[Tensor], grads: list[Tensor]) -> None:
        total = torch.stack([g.sum() for g in grads]).sum()
        for p, g in zip(params, grads, strict=True):
            p.sub_(g * total)

    def with_broadcast(params: list[Tensor], grads: list[Tensor]) -> None:
        for p, g in zip(params, grads, strict=True):
            p.sub_(g[0])

    def with_noise(params: list[Tensor], grads: list[Tensor]) -> None:
        for p, g in zip(params, grads, strict=True):
            p.sub_(g * torch.rand_like(g))

    def one_alone(params: list[Tensor], grads: list[Tensor]) -> None:
        params[0].sub_(grads[0])

    for function in (with_norm, with_common_norm, with_broadcast, one_alone):
        applied = captured(function, tensors((4, 6), (3, 6)), tensors((4, 6), (3, 6)))
        assert not applied.result.changed, function
        assert applied.after is applied.before
    capture = Capture(BatchUpdates())
    capture.compile(with_noise)(tensors((4, 6), (3, 6)), tensors((4, 6), (3, 6)))
    assert not any(applied.result.changed for applied in capture.applied)


def test_other_layouts_stay() -> None:
    applied = captured(
        descend, tensors((4, 6), (6, 4)), [torch.randn(6, 4).t(), torch.randn(4, 6).t()]
    )
    assert not applied.result.changed
    wide = [torch.randn(4, 12)[:, ::2], torch.randn(4, 12)[:, ::2]]
    assert not captured(lambda params: [p.mul_(2) for p in params] and None, wide).result.changed


def test_the_rest_of_the_graph_stays() -> None:
    def step(params: list[Tensor], grads: list[Tensor], x: Tensor) -> Tensor:
        descend(params, grads)
        return x.sum(0) * 2

    applied = captured(step, tensors((4, 6), (3,)), tensors((4, 6), (3,)), torch.randn(3, 4))
    assert rows(applied.after) == [2]
    assert any("sum" in str(node.target) for node in applied.after.graph.nodes)


def test_joint_graphs_stay_and_a_second_run_changes_nothing() -> None:
    applied = captured(descend, tensors((4, 6), (3,)), tensors((4, 6), (3,)))
    assert not apply_pass(BatchUpdates(), applied.before, kind="joint").result.changed
    assert not apply_pass(BatchUpdates(), applied.after).result.changed


def test_the_text_of_a_batch_parses_back() -> None:
    applied = captured(descend, tensors((4, 6), (3,)), tensors((4, 6), (3,)))
    text = print_graph(applied.after, origins=False)
    assert "batch @b0" in text
    again = parse_graph(text)
    assert print_graph(again, origins=False) == text
    assert isinstance(compare_graphs(applied.after, again), Agreement)
