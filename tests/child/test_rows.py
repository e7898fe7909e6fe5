"""Graphs of Dynamo as rows that print as Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.fx import GraphModule

from deepcompile.child.rows import CannotPrint, Read, Ref, Row, Rows, function_of, read_graph


def graph_of(function: Any, *inputs: Tensor, dynamic: bool = False) -> Read:
    found: list[Read] = []

    def backend(gm: GraphModule, example_inputs: Any) -> Any:
        found.append(read_graph(gm))
        return gm

    torch._dynamo.reset()
    torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    return found[0]


def test_a_graph_runs_from_its_text() -> None:
    def function(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = F.layer_norm(x @ w, (4,), eps=1e-3)
        a, b = y.chunk(2, dim=-1)
        return torch.where(a > 0, a * 2, -b), y[:, 1:].to(torch.float64).sum((0, 1), keepdim=True)

    x, w = torch.randn(3, 4), torch.randn(4, 4)
    read = graph_of(function, x, w)
    given = [(x, w)[source] for source in read.sources.values()]  # type: ignore[index]
    for actual, expected in zip(read.rows.function()(*given), function(x, w), strict=True):
        torch.testing.assert_close(actual, expected)
    assert "# " in str(read.rows), "rows name the user's lines"
    assert "test_rows.py" in str(read.rows)


def test_sizes_that_are_inputs_become_sizes_of_tensors() -> None:
    read = graph_of(lambda x: x.reshape(x.shape[0] * 2, -1) + 1, torch.randn(6, 4), dynamic=True)
    assert read.rows.function()(torch.ones(10, 4))[0].shape == (20, 2)


def test_what_is_not_needed_goes_but_writes_stay() -> None:
    rows = Rows(
        ("x", "y"),
        (
            Row("a", "method", "clone", (Ref("x"),), {}),
            Row("b", "method", "add_", (Ref("x"), 1), {}),
            Row("c", "call", "torch.sin", (Ref("y"),), {}),
        ),
        ("a",),
    )
    needed = rows.needed()
    assert [row.name for row in needed.rows] == ["a", "b"]
    assert needed.inputs == ("x",)


def test_arguments_without_a_text_are_refused() -> None:
    row = Row("a", "call", "torch.sin", (object(),), {})
    with pytest.raises(CannotPrint, match="object"):
        str(row)


def test_special_numbers_and_types_print() -> None:
    args = (Ref("x"), float("-inf"), torch.bfloat16, [1, (2,)], None, True)
    text = str(Rows(("x",), (Row("a", "call", "max", args, {"k": slice(1, None)}),), ("a",)))
    assert "float('-inf'), torch.bfloat16, [1, (2,)], None, True, k=slice(1, None, None)" in text
    assert function_of(text)
