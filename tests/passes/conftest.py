"""Graphs of real programs to run passes on, and bit-exact comparison of graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.fx import GraphModule, Interpreter

from deepcompile.capture.aot import compile_through_aot, interpret
from deepcompile.options import Options
from deepcompile.pipeline.context import Context, Counters
from deepcompile.pipeline.execute import make_inputs
from deepcompile.pipeline.protocol import PassResult


@dataclass
class Applied:
    """One pass applied to one graph, with the events that it noted."""

    kind: str
    before: GraphModule
    result: PassResult
    events: list[tuple[str, dict[str, Any]]]

    @property
    def after(self) -> GraphModule:
        return self.result.graph


def apply_pass(
    pass_: Any, graph: GraphModule, kind: Any = "inference", options: Options | None = None
) -> Applied:
    """The pass on one graph, in a context of its own."""
    events: list[tuple[str, dict[str, Any]]] = []
    context = Context(
        pass_.name,
        kind,
        options or Options(),
        Counters(),
        lambda event, **fields: events.append((event, fields)),
    )
    return Applied(kind, graph, pass_.run(graph, context), events)


@dataclass
class Capture:
    """Compiles functions with one pass alone, or captures their graphs as they are."""

    pass_: Any = None
    joint: Any = None
    options: Options = field(default_factory=lambda: Options(strict=True))
    applied: list[Applied] = field(default_factory=list)

    def _apply(self, pass_: Any, graph: GraphModule, kind: str) -> GraphModule:
        if pass_ is None:
            self.applied.append(Applied(kind, graph, PassResult(graph, False), []))
        else:
            self.applied.append(apply_pass(pass_, graph, kind, self.options))
        return self.applied[-1].after

    def backend(self, gm: GraphModule, example_inputs: Any) -> Any:
        def compile_graph(graph: GraphModule, _: Any, *, kind: str, static_input_idxs: Any) -> Any:
            return interpret(self._apply(self.pass_, graph, kind))

        return compile_through_aot(
            gm,
            example_inputs,
            compile_graph=compile_graph,
            run_joint_passes=lambda joint: self._apply(self.joint, joint, "joint"),
            options=self.options,
        )

    def compile(self, function: Any, **kwargs: Any) -> Any:
        return torch.compile(function, backend=self.backend, **kwargs)

    def by_kind(self, kind: str) -> list[Applied]:
        return [applied for applied in self.applied if applied.kind == kind]


@pytest.fixture
def capture() -> Any:
    """`capture(pass_, joint=pass_)`: a new `Capture`."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield Capture
    torch._dynamo.reset()


@pytest.fixture(name="apply_pass")
def _apply_pass() -> Callable[..., Applied]:
    return apply_pass


def _run(graph: GraphModule, inputs: list[Any]) -> tuple[list[Any], list[Any]]:
    """Outputs of the graph and its inputs as it left them."""
    given = [_same_memory_layout(value) for value in inputs]
    torch.manual_seed(3)
    with torch.no_grad():
        output = Interpreter(graph).run(*given, enable_io_processing=False)
    return list(output) if isinstance(output, list | tuple) else [output], given


def _same_memory_layout(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    copy = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)
    return copy.copy_(value) if 0 not in value.stride() else value.clone()


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def _aliasing(values: list[Any]) -> list[int]:
    """For each tensor the position of the first one in the same memory."""
    storages = [
        v.untyped_storage().data_ptr() if isinstance(v, torch.Tensor) and v.numel() else -1 - i
        for i, v in enumerate(values)
    ]
    return [storages.index(storage) for storage in storages]


@pytest.fixture
def assert_same_bits() -> Callable[[GraphModule, GraphModule], None]:
    """Both graphs give the same bits, strides and aliasing on the same inputs."""

    def check(before: GraphModule, after: GraphModule, *, exact: bool = True) -> None:
        inputs = make_inputs(before)
        expected, expected_inputs = _run(before, inputs)
        actual, actual_inputs = _run(after, inputs)
        assert len(actual) == len(expected)
        assert _aliasing(actual_inputs + actual) == _aliasing(expected_inputs + expected)
        for one, two in zip(expected_inputs + expected, actual_inputs + actual, strict=True):
            if not isinstance(one, torch.Tensor):
                assert one == two
                continue
            assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
            if exact:
                assert _bits(one) == _bits(two)
            else:
                torch.testing.assert_close(two, one, equal_nan=True)

    return check
