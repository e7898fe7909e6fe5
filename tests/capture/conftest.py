"""A backend that captures and runs graphs in eager, and remembers what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from deepcompile.capture.aot import compile_through_aot, interpret
from deepcompile.options import Options
from deepcompile.passes.functionalise_random import FunctionaliseRandom
from deepcompile.pipeline.manager import PassManager


@dataclass
class Capture:
    """The reference compiler of these tests; `graphs` holds (kind, graph) in order of compiling."""

    options: Options = field(default_factory=Options)
    graphs: list[tuple[str, GraphModule]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fail_on: tuple[str, ...] = ()
    error: Exception | None = None

    def note(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def compile_graph(
        self,
        gm: GraphModule,
        example_inputs: Sequence[Any],
        *,
        kind: str,
        static_input_idxs: Sequence[int],
    ) -> Callable[..., Any]:
        assert len(example_inputs) == len(self.placeholders(gm))
        if kind in self.fail_on:
            raise self.error or RuntimeError("made to fail")
        if kind == "inference":
            gm = self._passes().run(gm, "inference", "graph")
        self.graphs.append((kind, gm))
        return interpret(gm)

    def run_joint_passes(self, joint: GraphModule) -> GraphModule:
        return self._passes().run(joint, "joint", "graph")

    def _passes(self) -> PassManager:
        return PassManager([FunctionaliseRandom()], options=self.options, sink=self.note)

    def backend(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_through_aot(
            gm,
            example_inputs,
            compile_graph=self.compile_graph,
            run_joint_passes=self.run_joint_passes,
            options=self.options,
            note=self.note,
        )

    def compile(self, function: Any, **kwargs: Any) -> Any:
        return torch.compile(function, backend=self.backend, **kwargs)

    def count(self, kind: str) -> int:
        return sum(1 for graph_kind, _ in self.graphs if graph_kind == kind)

    def graph(self, kind: str) -> GraphModule:
        return next(graph for graph_kind, graph in self.graphs if graph_kind == kind)

    def saved(self, num_outputs: int) -> list[torch.fx.Node]:
        """What the forward graph computes for the backward graph, inputs left out."""
        outputs = self.graph("forward").graph.output_node().args[0]
        return [node for node in outputs[num_outputs:] if node.op != "placeholder"]

    @staticmethod
    def placeholders(gm: GraphModule) -> list[torch.fx.Node]:
        return [node for node in gm.graph.nodes if node.op == "placeholder"]


@pytest.fixture
def capture() -> Iterator[Capture]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield Capture()
    torch._dynamo.reset()
