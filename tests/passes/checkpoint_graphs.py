"""Joint graphs of small models, for the tests of checkpoints; nothing is built or run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchmarks.torch_budget import joint_graph
from deepcompile.cost.rates import rates_of
from deepcompile.passes.checkpoints.joint import Joint


def square_loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return module(batch["x"]).square().sum()


def joint_of(module: nn.Module, x: Tensor, **options: Any) -> Joint:
    """Of a training step with a loss of squares."""
    graph, _, kwargs = joint_graph(module, {"x": x}, square_loss, options=options)
    return Joint(graph.graph, kwargs["num_fwd_outputs"], rates_of("cpu", None, 1))
