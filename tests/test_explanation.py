"""`deepcompile.explain`: what it counts, what it prints, and that it leaves the model alone."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.testing import assert_close

import deepcompile
from deepcompile.codegen import program

LOG = logging.getLogger("deepcompile.test")


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("DEEPCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """Has everything that a run can disturb: buffers, dropout, attributes, two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.normed = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 11)
        self.calls = 0
        self.seen: list[int] = []

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        hidden = self.normed(self.table(tokens).flatten(0, 1))
        self.seen.append(len(tokens))
        torch._dynamo.graph_break()
        logits = self.head(F.dropout(F.gelu(hidden), 0.1))
        return {"loss": F.cross_entropy(logits, tokens.flatten()), "logits": logits}


def tokens() -> Tensor:
    return torch.randint(0, 11, (4, 8))


def scale(x: Tensor) -> Tensor:
    return x.sin() * 2 + 1


class TestWhatItCounts:
    def test_a_training_model(self):
        found = deepcompile.explain(Net(), tokens())
        kinds = [graph.kind for graph in found.graphs]
        assert sorted(kinds) == ["backward", "backward", "forward", "forward"]
        assert found.kernels
        assert not found.fallbacks
        assert found.externs["aten.addmm.default"] == 1
        assert found.externs["aten.mm.default"] == 2
        source, first = inspect.getsourcelines(Net)
        line = first + next(i for i, text in enumerate(source) if "graph_break()" in text)
        (stop,) = found.graph_breaks
        assert stop.count == 1
        assert stop.origin == f"{__file__}:{line}"
        assert "graph_break()" in stop.reason
        assert found.seconds > sum(found.compile_seconds.values()) > 0

    def test_bytes_of_a_pointwise_kernel_are_exact(self):
        found = deepcompile.explain(scale, torch.randn(32, 8))
        (kernel,) = found.kernels
        assert kernel.bytes_read == kernel.bytes_written == 32 * 8 * 4
        assert found.bytes_moved == 2 * 32 * 8 * 4
        assert found.bytes_op_by_op == 3 * found.bytes_moved
        assert kernel.ops == ("sin.default", "mul.Tensor", "add.Tensor")
        assert [line.rpartition(":")[2] for line in kernel.lines] == [
            str(inspect.getsourcelines(scale)[1] + 1)
        ]

    def test_bytes_of_a_product_are_counted(self):
        found = deepcompile.explain(torch.mm, torch.randn(5, 7), torch.randn(7, 3))
        assert found.bytes_moved == found.bytes_op_by_op == 4 * (5 * 7 + 7 * 3 + 5 * 3)

    def test_symbolic_sizes_take_those_of_the_call(self):
        torch._dynamo.mark_dynamic(x := torch.randn(48, 8), 0)
        with torch._dynamo.config.patch(assume_static_by_default=False):
            found = deepcompile.explain(scale, x)
        assert found.bytes_moved == 2 * 48 * 8 * 4

    def test_arena_and_its_lower_bound(self):
        def function(x: Tensor) -> Tensor:
            return ((x @ x).sin() @ x).cos() @ x

        (graph,) = deepcompile.explain(function, torch.randn(16, 16)).graphs
        assert graph.arena_bytes >= graph.arena_bound >= 2 * 16 * 16 * 4

    def test_the_second_time_the_kernels_are_cached(self):
        first, second = (deepcompile.explain(scale, torch.randn(9)) for _ in range(2))
        assert (first.cache_hits, second.cache_hits) == (0, 1)

    def test_a_fallback_has_its_reason(self, monkeypatch):
        def refuse(*_: Any) -> None:
            raise program.CannotCompile("not today")

        monkeypatch.setattr(program._Maker, "_kernel", refuse)
        found = deepcompile.explain(scale, torch.randn(9))
        assert [reason for _, reason in found.fallbacks] == ["not today"]
        assert "not today" in str(found)
        assert found.bytes_moved == found.bytes_op_by_op

    def test_breaks_that_leave_no_graph_are_counted(self):
        def function(x: Tensor) -> Tensor:
            print("", end="")
            return x.sin()

        found = deepcompile.explain(function, torch.randn(3))
        assert [(b.count, b.origin) for b in found.graph_breaks] == [(1, None)]
        assert "print" in found.graph_breaks[0].reason

    def test_a_call_that_logs_breaks_once_at_its_line(self):
        def inner(x: Tensor) -> Tensor:
            LOG.warning("seen")
            return x.sin()

        def function(x: Tensor) -> Tensor:
            x = x.cos()
            return inner(x) + 1

        (found,) = deepcompile.explain(function, torch.randn(3)).graph_breaks
        assert found.count == 1
        assert "Logger" in found.reason
        line = inspect.getsourcelines(inner)[1] + 1
        assert found.origin == f"{__file__}:{line}"

    def test_nothing_captured(self):
        found = deepcompile.explain(lambda: 3)
        assert not found.graphs
        assert "captured no graph" in str(found)


class TestWhatItPrints:
    def test_the_page_names_all_parts(self):
        text = str(deepcompile.explain(Net(), tokens()))
        for part in (
            "4 graphs (2 forward, 2 backward)", "one run moves", "op by op", "kernels, by bytes",
            "aten.addmm.default", "fallbacks to eager: none", "graph breaks:\n  1x ",
            "fusions rejected, ", "memory for intermediates", "test_explanation.py:",
        ):  # fmt: skip
            assert part in text, part

    def test_details_have_every_kernel(self):
        found = deepcompile.explain(Net(), tokens())
        details = found.details()
        for kernel in found.kernels:
            assert f"kernel {kernel.name}: reads" in details
        assert "more" not in details
        assert len(details) > len(str(found))

    def test_json(self):
        found = deepcompile.explain(Net(), tokens())
        data = json.loads(json.dumps(found.to_dict()))
        assert data["bytes_moved"] == found.bytes_moved
        assert len(data["graphs"]) == 4
        assert data["graph_breaks"][0]["count"] == 1


class TestThatItLeavesNoTrace:
    def state(self, model: Net) -> Any:
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        values = {name: value.clone() for name, value in model.state_dict().items()}
        generators = torch.random.get_rng_state(), random.getstate()
        attributes = model.calls, list(model.seen), model.training, sorted(vars(model))
        return gradients, values, generators, attributes

    @pytest.mark.parametrize("how", [
        "module",
        "compiled",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("method", "lambda")),
    ])  # fmt: skip
    def test_on_the_model_and_random_states(self, how):
        model = Net()
        batch = tokens()
        model(batch)["loss"].backward()
        model.head.bias.grad = None
        called = {
            "module": model,
            "compiled": torch.compile(model, backend="eager"),
            "method": model.forward,
            "lambda": lambda batch: model(batch)["loss"],
        }[how]
        before = self.state(model)
        addresses = [p.data_ptr() for p in model.parameters()]
        found = deepcompile.explain(called, batch)
        assert sum(graph.kind == "backward" for graph in found.graphs) == 2
        after = self.state(model)
        assert_close(before[:2], after[:2], rtol=0, atol=0)
        assert torch.equal(before[2][0], after[2][0])
        assert before[2][1] == after[2][1]
        assert before[3] == after[3]
        assert addresses == [p.data_ptr() for p in model.parameters()]

    def test_on_inputs(self):
        def function(x: Tensor, y: Tensor) -> Tensor:
            x.mul_(2)
            return x + y

        x, y = torch.randn(4), torch.randn(4, requires_grad=True)
        kept = x.clone()
        deepcompile.explain(function, x, y=y)
        assert torch.equal(x, kept)
        assert y.grad is None

    def test_on_what_the_user_compiled_and_compiles_next(self):
        model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 4)
        twin = copy.deepcopy(model)
        compiled = torch.compile(model, backend="deepep")
        assert_close(compiled(x), twin(x))
        deepcompile.explain(model, x)
        assert_close(compiled(x), twin(x))

    def test_when_the_model_raises(self):
        model = Net()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(IndexError):
            deepcompile.explain(model, torch.tensor([[99, 0]]))
        assert model.calls == 0
        assert_close(model.state_dict(), before)

    def test_no_backward_without_gradients(self):
        with torch.no_grad():
            found = deepcompile.explain(Net(), tokens())
        assert {graph.kind for graph in found.graphs} == {"inference"}
