"""`verify` and `strict` end to end, through `torch.compile(backend="deepep")`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.testing import assert_close

import deepcompile.passes
from deepcompile.backend import recording
from deepcompile.codegen import program
from deepcompile.errors import CompileError, VerificationError
from deepcompile.pipeline.protocol import PassContext, PassResult
from deepcompile.pipeline.registry import default_registry

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def _replace(gm: GraphModule, old: Any, new: Callable[..., Any]) -> PassResult:
    result = copy.deepcopy(gm)
    found = [node for node in result.graph.nodes if node.target is old]
    for node in found:
        node.target = new
    return PassResult(result, bool(found), {})


@dataclass(frozen=True)
class WrongTanh:
    """Turn tanh into sigmoid, which is wrong."""

    name: ClassVar[str] = "wrong-tanh"
    phase: ClassVar[str] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        return _replace(graph, aten.tanh.default, aten.sigmoid.default)


@dataclass(frozen=True)
class Stumbling:
    """Fail at the first tanh."""

    name: ClassVar[str] = "stumbling"
    phase: ClassVar[str] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        for node in graph.graph.nodes:
            if node.target is aten.tanh.default:
                raise KeyError("no rule")
        return PassResult(graph, False, {})


@pytest.fixture
def extra_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The default pipeline with the two bad passes known by name."""
    table = {c.name: f"{__name__}:{c.__name__}" for c in (WrongTanh, Stumbling)}
    monkeypatch.setattr(deepcompile.passes, "PASSES", {**deepcompile.passes.PASSES, **table})
    default_registry.cache_clear()
    yield
    default_registry.cache_clear()


def compiled(function: Any, dynamic: bool | None = None, **options: Any) -> Any:
    return torch.compile(function, backend="deepep", dynamic=dynamic, options=options)


def rows() -> Tensor:
    return torch.randn(6, 20)


NORM = nn.LayerNorm(20)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, -1) * 2,
    "layer-norm": lambda x: NORM(x).square(),
    "dropout": lambda x: F.dropout(x, 0.3) * x,
    "matmul": lambda x: torch.relu(x @ x.t()).sum(-1),
}


class TestVerify:
    @pytest.mark.parametrize("dynamic", [None, True])
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_sound_passes_are_run_on_all_graphs_and_agree(self, name, dynamic):
        function = compiled(FUNCTIONS[name], dynamic, verify=True)
        with recording() as record:
            function(rows().requires_grad_()).square().sum().backward()
            with torch.no_grad():
                function(rows())
        events = [event for event, _ in record.events]
        assert "fallback" not in events
        assert "verify-skipped" not in events
        by_values = {f["graph"] for e, f in record.events if e == "verified" and f["values"]}
        assert {g.name for g in record.graphs if g.kernels} <= by_values
        assert {g.kind for g in record.graphs} == {"forward", "backward", "inference"}

    def test_verifying_moves_neither_the_generator_nor_the_inputs(self):
        x = rows()
        kept = x.clone()
        states = []
        for verify in (False, True):
            torch._dynamo.reset()
            torch.manual_seed(3)
            compiled(lambda x: F.dropout(x, 0.5), verify=verify)(x)
            states.append(torch.random.get_rng_state())
        assert torch.equal(*states)
        assert torch.equal(x, kept)

    def test_a_joint_graph_is_run(self):
        with recording() as record:
            compiled(FUNCTIONS["softmax"], verify=True)(rows().requires_grad_())
        verified = [f for e, f in record.events if e == "verified"]
        assert any(f["graph"].endswith("joint") and f["values"] for f in verified)

    @pytest.mark.usefixtures("extra_passes")
    @pytest.mark.parametrize("training", [False, True])
    def test_a_wrong_pass_is_named_with_the_first_differing_node(self, training):
        function = compiled(
            lambda x: torch.tanh(x.exp()) + 1, verify=True, passes="wrong-tanh,fuse-rows"
        )
        with pytest.raises(VerificationError) as caught:
            function(rows().requires_grad_(training))
        assert caught.value.pass_name == "wrong-tanh"
        assert caught.value.node == "tanh"
        assert caught.value.max_error > 0.1
        assert "DEEPCOMPILE_DISABLE=wrong-tanh" in str(caught.value)

    @pytest.mark.usefixtures("extra_passes")
    def test_a_wrong_pass_on_a_backward_graph_is_named(self):
        @torch.compile(
            backend="deepep",
            dynamic=False,
            options={"verify": True, "passes": "wrong-tanh,fuse-rows"},
        )
        def function(x: Tensor) -> Tensor:
            return Tanh.apply(x)

        y = function(rows().requires_grad_()).sum()
        with pytest.raises(VerificationError) as caught:
            y.backward()
        assert caught.value.pass_name == "wrong-tanh"

    @pytest.mark.usefixtures("extra_passes")
    def test_without_verify_the_same_pass_does_its_harm(self):
        x = rows()
        function = compiled(torch.tanh, passes="wrong-tanh,fuse-rows")
        assert_close(function(x), torch.sigmoid(x))


class Tanh(torch.autograd.Function):
    """An identity whose gradient has the tanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.tanh(x)


def two_lines(x: Tensor) -> Tensor:
    y = x.exp()
    return torch.tanh(y)


def line_of(text: str) -> int:
    source, first = inspect.getsourcelines(two_lines)
    return first + next(i for i, line in enumerate(source) if text in line)


def assert_names_the_tanh(error: CompileError) -> None:
    assert error.source == "return torch.tanh(y)"
    assert error.origin is not None
    assert error.origin.endswith(f"test_verify_and_strict.py:{line_of('tanh(y)')}")
    assert "return torch.tanh(y)" in str(error)


class TestStrict:
    """Where something of ours fails on tanh, at three depths of the compiler."""

    def test_a_graph_that_programs_cannot_hold(self, monkeypatch):
        monkeypatch.setattr(program._Maker, "_kernel", _refuse)
        with pytest.raises(CompileError, match="not today") as caught:
            compiled(two_lines, strict=True)(rows())
        assert "test_verify_and_strict.py" in (caught.value.origin or "")

    @pytest.mark.usefixtures("extra_passes")
    def test_a_pass_that_fails(self):
        with pytest.raises(CompileError, match="stumbling") as caught:
            compiled(two_lines, strict=True, passes="stumbling,fuse-rows")(rows())
        assert_names_the_tanh(caught.value)

    @pytest.mark.usefixtures("extra_passes")
    def test_a_pass_that_fails_on_the_graph_of_a_training_step(self):
        with pytest.raises(CompileError, match="stumbling") as caught:
            compiled(two_lines, strict=True, passes="stumbling,fuse-rows")(rows().requires_grad_())
        assert_names_the_tanh(caught.value)

    def test_an_unexpected_error_in_code_generation(self, monkeypatch):
        monkeypatch.setattr(program._Maker, "_extern", _break_at_tanh)
        with pytest.raises(CompileError, match="IndexError: list") as caught:
            compiled(two_lines, strict=True, passes="canonicalise")(rows())
        assert_names_the_tanh(caught.value)

    @pytest.mark.parametrize("training", [False, True])
    def test_without_strict_the_graph_runs_in_eager_and_says_why(self, monkeypatch, training):
        monkeypatch.setattr(program._Maker, "_extern", _break_at_tanh)
        x = rows().requires_grad_(training)
        with recording() as record:
            result = compiled(two_lines, passes="canonicalise")(x)
        assert_close(result, two_lines(x))
        ((_, fields),) = [e for e in record.events if e[0] == "fallback"]
        assert fields["reason"] == "IndexError: list index out of range"
        assert fields["origin"].endswith(f":{line_of('tanh(y)')}")
        assert [g.fallback for g in record.graphs] == [fields["reason"]]
        if training:
            result.sum().backward()
            assert_close(x.grad, torch.autograd.grad(two_lines(x).sum(), x)[0])

    def test_a_pass_that_fails_is_left_out(self, extra_passes):
        x = rows()
        with recording() as record:
            assert_close(compiled(two_lines, passes="stumbling,fuse-rows")(x), two_lines(x))
        assert [f["pass"] for e, f in record.events if e == "pass-failed"] == ["stumbling"]
        assert [len(g.kernels) for g in record.graphs] == [1]

    def test_an_op_that_writes_into_its_input(self):
        @torch.library.custom_op("deepcompile_test::bump", mutates_args={"x"})
        def bump(x: Tensor) -> None:
            x.add_(1)

        def function(x: Tensor) -> Tensor:
            y = x * 2
            bump(y)
            return y

        x = rows()
        assert_close(compiled(function)(x), x * 2 + 1)


_true_extern = program._Maker._extern


def _refuse(self: Any, node: Any, op: Any) -> None:
    raise program.CannotCompile("not today")


def _break_at_tanh(self: Any, node: Any) -> None:
    if node.target is aten.tanh.default:
        [][0]
    _true_extern(self, node)
