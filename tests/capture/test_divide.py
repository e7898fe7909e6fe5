"""The quick division of joint graphs gives what torch's own does, or leaves the graph to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.torch_budget import joint_graph
from deepcompile.capture import torch_private
from deepcompile.capture.divide import divided_plainly
from deepcompile.cost.rates import rates_of
from deepcompile.passes.checkpoints.joint import Joint

MODELS = {
    "products": lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
    "dropout": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)),
    "statistics": lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
}


def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return module(batch["x"]).square().sum()


def halves_of(joint: GraphModule, saved: list, num_fwd_outputs: int) -> tuple[str, str]:
    halves = torch_private.divide_joint_graph(joint, saved, (), num_fwd_outputs)
    marks = [[n.meta.get("autograd_backward") for n in half.graph.nodes] for half in halves]
    return tuple(f"{half.graph}\n{mark}" for half, mark in zip(halves, marks, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_halves_are_those_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joint, _, kwargs = joint_graph(MODELS[name]().train(), {"x": torch.randn(4, 8)}, loss)
    outputs = kwargs["num_fwd_outputs"]
    facts = Joint(joint.graph, outputs, rates_of("cpu", None, 1))
    unread = next(node for node in facts.forward if node not in facts.needed)
    saved = [*facts.needed, unread]
    assert divided_plainly(joint.graph, saved, outputs) is not None
    quick = halves_of(joint, saved, outputs)
    monkeypatch.setattr(torch_private, "divided_plainly", lambda *_: None)
    assert quick == halves_of(joint, saved, outputs)


def test_what_backward_writes_into_an_input_is_left_to_torch() -> None:
    joint, _, kwargs = joint_graph(MODELS["products"](), {"x": torch.randn(4, 8)}, loss)
    outputs = kwargs["num_fwd_outputs"]
    saved = list(Joint(joint.graph, outputs, rates_of("cpu", None, 1)).needed)
    first = next(iter(joint.graph.nodes))
    with joint.graph.inserting_before(saved[-1].next):
        write = joint.graph.call_function(torch.ops.aten.copy_.default, (first, first))
    assert divided_plainly(joint.graph, saved, outputs) is not None
    write.meta["partitioner_tag"] = "is_backward"
    assert divided_plainly(joint.graph, saved, outputs) is None
