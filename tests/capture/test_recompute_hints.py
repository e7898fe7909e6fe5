"""What forward hands to backward inside a network: inputs and statistics, not derived matrices."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.fx import Graph
from torch.utils.checkpoint import CheckpointPolicy

from deepcompile.capture.mutated_inputs import keep_values_before_mutation
from deepcompile.capture.recompute_hints import prefer_recomputing

aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(width), norm(width)
        self.value, self.gate, self.out = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.first(x)
        x = x + self.out(self.value(y) * torch.tanh(self.gate(y)))
        return x + self.down(F.gelu(self.up(self.second(x))))


def matrices_made_to_be_saved(capture, size):
    """Values of `size` elements or more that forward computes for backward only."""
    return [
        node
        for node in capture.saved(1)
        if node.meta["val"].numel() >= size and all(user.op == "output" for user in node.users)
    ]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("shape", [(64, 16), (4, 16, 16)])
def test_norms_keep_their_input_not_the_normalised_rows(capture, norm, shape):
    capture.compile(nn.Sequential(Block(16, norm), Block(16, norm)))(
        torch.randn(shape)
    ).sum().backward()
    assert not matrices_made_to_be_saved(capture, 64 * 16)


def test_exponentials_of_a_loss_are_recomputed(capture):
    target = torch.randint(0, 8, (64,))
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    capture.compile(lambda x: F.cross_entropy(model(x), target))(torch.randn(64, 8)).backward()
    assert not matrices_made_to_be_saved(capture, 64 * 8)


def test_batch_norm_between_convolutions(capture):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    capture.compile(model)(torch.randn(2, 3, 8, 8)).sum().backward()
    full = [node.target for node in capture.saved(1) if node.meta["val"].numel() == 2 * 4 * 36]
    assert sorted(map(str, full)) == ["aten.convolution.default", "aten.relu.default"]


def with_values(graph: Graph) -> Graph:
    for node in graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = torch.ones(8, 4)
        elif node.op == "call_function":
            args = [a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in node.args]
            node.meta["val"] = node.target(*args)
    return graph


def joint(build) -> tuple[Graph, dict[str, torch.fx.Node]]:
    """A joint graph of x and tangent; `build(call, x, tangent)` returns named nodes."""
    graph = Graph()
    x, tangent = graph.placeholder("primals_1"), graph.placeholder("tangents_1")
    nodes = build(lambda target, *args: graph.call_function(target, args), x, tangent)
    graph.output((nodes["out"], nodes["grad"]))
    return with_values(graph), nodes


def test_a_function_of_one_input_is_marked():
    graph, nodes = joint(
        lambda call, x, t: {
            "cos": (cos := call(aten.cos.default, x)),
            "out": call(aten.sin.default, x),
            "grad": call(aten.mul.Tensor, t, cos),
        }
    )
    assert prefer_recomputing(graph) == 1
    assert nodes["cos"].meta["recompute"] is CheckpointPolicy.MUST_RECOMPUTE


def test_a_function_of_two_matrices_is_not_marked():
    def build(call, x, t):
        other = call(aten.exp.default, x)
        product = call(aten.mul.Tensor, x, other)
        out = call(aten.add.Tensor, product, other)
        return {"out": out, "grad": call(aten.mul.Tensor, t, product), "product": product}

    graph, nodes = joint(build)
    prefer_recomputing(graph)
    assert "recompute" not in nodes["product"].meta


def test_what_a_matrix_product_of_backward_reads_is_not_marked():
    def build(call, x, t):
        relu = call(aten.relu.default, x)
        transposed = call(aten.permute.default, relu, [1, 0])
        return {"out": call(aten.neg.default, relu), "grad": call(aten.mm.default, transposed, t)}

    graph, _ = joint(build)
    assert prefer_recomputing(graph) == 0


def test_what_only_forward_needs_is_not_marked():
    graph, _ = joint(
        lambda call, x, t: {
            "out": call(aten.exp.default, call(aten.sin.default, x)),
            "grad": call(aten.neg.default, t),
        }
    )
    assert prefer_recomputing(graph) == 0


def test_existing_marks_are_kept():
    def build(call, x, t):
        cos = call(aten.cos.default, x)
        cos.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        return {"out": call(aten.sin.default, x), "grad": call(aten.mul.Tensor, t, cos), "cos": cos}

    graph, nodes = joint(build)
    assert prefer_recomputing(graph) == 0
    assert nodes["cos"].meta["recompute"] is CheckpointPolicy.MUST_SAVE


class TestMutatedInputs:
    def graph(self, read):
        """`out = read(x)`, `grad = tangent * out`, and x overwritten at the end."""
        graph = Graph()
        x, tangent = graph.placeholder("primals_1"), graph.placeholder("tangents_1")
        value = read(graph, x)
        grad = graph.call_function(aten.mul.Tensor, (tangent, value))
        copy = graph.call_function(
            aten.copy_.default, (x, graph.call_function(aten.neg.default, (x,)))
        )
        graph.output((value, grad))
        return with_values(graph), x, value, grad, copy

    def test_readers_are_saved(self):
        graph, _, value, _, _ = self.graph(lambda g, x: g.call_function(aten.sin.default, (x,)))
        assert keep_values_before_mutation(graph) == 1
        assert value.meta["recompute"] is CheckpointPolicy.MUST_SAVE

    def test_readers_of_views_are_saved(self):
        def read(graph, x):
            view = graph.call_function(aten.permute.default, (x, [0, 1]))
            return graph.call_function(aten.sin.default, (view,))

        graph, _, value, _, _ = self.graph(read)
        keep_values_before_mutation(graph)
        assert value.meta["recompute"] is CheckpointPolicy.MUST_SAVE

    def test_an_input_that_the_gradient_reads_is_cloned(self):
        graph, x, _, grad, copy = self.graph(lambda g, x: x)
        keep_values_before_mutation(graph)
        clone = grad.args[1]
        assert clone.target is aten.clone.default
        assert clone.args == (x,)
        assert copy.args[0] is x

    def test_graphs_without_mutation_are_left_alone(self):
        graph = Graph()
        x = graph.placeholder("primals_1")
        graph.output((graph.call_function(operator.neg, (x,)),))
        assert keep_values_before_mutation(graph) == 0
        assert len(graph.nodes) == 3
