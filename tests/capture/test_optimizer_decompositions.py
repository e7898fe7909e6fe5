"""Ops on lists and scaled updates: equal to ATen's, and nothing of them left in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from deepcompile.capture.aot import compile_through_aot, interpret
from deepcompile.capture.optimizer_decompositions import TABLE
from deepcompile.options import Options

aten = torch.ops.aten
LISTS = sorted(str(op) for op in TABLE if "_foreach_" in str(op))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


class Tracer:
    """A backend that keeps the graphs it is given, and runs them in eager."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []

    def __call__(self, gm: GraphModule, example_inputs: Any) -> Any:
        return compile_through_aot(
            gm,
            example_inputs,
            compile_graph=self._keep,
            run_joint_passes=lambda joint: joint,
            options=Options(strict=True),
        )

    def _keep(self, graph: GraphModule, _: Any, *, kind: str, static_input_idxs: Any) -> Any:
        self.graphs.append(graph)
        return interpret(graph)


def targets(graph: GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


def arguments(op: Any) -> list[Any]:
    """Something for each parameter that must be given."""
    made: list[Any] = []
    for parameter in op._schema.arguments:
        if parameter.has_default_value():
            continue
        kind = str(parameter.type)
        if kind == "List[Tensor]":
            made.append([torch.rand(3, 2) / 2 + 0.1, torch.rand(5) / 2 + 0.1])
        elif kind == "List[number]":
            made.append([0.25, 0.75])
        elif kind == "Tensor":
            paired = op._schema.name.startswith(("aten::_foreach_addc",))
            made.append(torch.tensor([0.5, 2.0]) if paired else torch.tensor(0.5))
        else:
            made.append(0.3)
    return made


@pytest.mark.parametrize("name", LISTS)
def test_an_op_on_a_list_is_one_op_a_tensor(name: str) -> None:
    op = next(op for op in TABLE if str(op) == name)
    given = arguments(op)
    expected = op(*given)
    found = TABLE[op](*given)
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_no_list_op_is_left() -> None:
    def step(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        torch._foreach_mul_(params, 0.9)
        torch._foreach_addcdiv_(params, grads, params, -0.5)
        torch._foreach_add_(grads, params, alpha=2)
        return torch._foreach_maximum(params, grads)

    def tensors() -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(0)
        return [torch.rand(3, 2) + 1, torch.rand(5) + 1], [torch.rand(3, 2), torch.rand(5)]

    expected, found = tensors(), tensors()
    wanted = step(*expected)
    tracer = Tracer()
    result = torch.compile(step, backend=tracer, fullgraph=True)(*found)
    (graph,) = tracer.graphs
    torch.testing.assert_close((result, found), (wanted, expected))
    assert not any("_foreach" in target for target in targets(graph))


@pytest.mark.parametrize(
    "update",
    [
        lambda p, g, rate: p.add_(g, alpha=-rate),
        lambda p, g, rate: p.sub_(g, alpha=rate),
        lambda p, g, rate: p.addcdiv_(g, g + 3, value=-rate),
        lambda p, g, rate: p.addcmul_(g, g, value=rate),
        lambda p, g, rate: torch._foreach_add_([p], [g], alpha=rate),
        lambda p, g, rate: torch._foreach_addcdiv_([p], [g], [g + 3], rate),
    ],
    ids=["add", "sub", "addcdiv", "addcmul", "list-add", "list-addcdiv"],
)
def test_a_changing_number_is_an_input(update: Callable[..., Any]) -> None:
    def step(p: Tensor, g: Tensor, rate: float) -> None:
        update(p, g, rate)

    tracer = Tracer()
    compiled = torch.compile(step, backend=tracer, fullgraph=True)
    with torch.no_grad():
        for rate in (0.1, 0.2, 0.3, 0.4, 0.5):
            expected, found, g = torch.ones(4), torch.ones(4), torch.rand(4)
            step(expected, g, rate)
            compiled(found, g, rate)
            torch.testing.assert_close(found, expected)
    assert len(tracer.graphs) == 2


def test_interpolation_starts_at_the_nearer_end() -> None:
    start, end = torch.randn(100), torch.randn(100)
    for weight in (0.0, 0.1, 0.5, 0.9, 1.0):
        found = TABLE[aten.lerp.Scalar](start, end, weight)
        torch.testing.assert_close(found, torch.lerp(start, end, weight), rtol=1e-6, atol=1e-6)
    assert torch.equal(TABLE[aten.lerp.Scalar](start, end, 1.0), end)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_dtypes_that_aten_widens_are_left_to_torch(dtype: torch.dtype) -> None:
    x, y = torch.arange(1, 9).to(dtype), torch.arange(2, 10).to(dtype)
    found = TABLE[aten.addcmul.default](x, y, y, value=3)
    assert torch.equal(found, torch.addcmul(x, y, y, value=3))
