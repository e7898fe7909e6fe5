"""Every node of forward and backward knows the user's line."""

from __future__ import annotations

import os.path

import torch
import torch.nn.functional as F  # noqa: N812
from torch.fx import Graph

from deepcompile.capture.backward_origins import copy_origins_to_backward
from deepcompile.ir.blame import place_of_node
from deepcompile.ir.origins import origin_of


def test_forward_and_backward_nodes_have_the_users_line(capture):
    def f(x):
        y = F.layer_norm(x, (4,))
        return torch.tanh(y) * 2

    capture.compile(f)(torch.randn(3, 4, requires_grad=True)).sum().backward()
    lines = {}
    for kind in ("forward", "backward"):
        nodes = [n for n in capture.graph(kind).graph.nodes if n.op == "call_function"]
        files = {os.path.abspath(str(origin_of(node)).rpartition(":")[0]) for node in nodes}
        assert files == {__file__}
        lines[kind] = {place_of_node(node).source for node in nodes}
    assert lines["forward"] == lines["backward"]
    assert "y = F.layer_norm(x, (4,))" in lines["forward"]


def test_nodes_without_a_trace_have_no_origin():
    assert origin_of(Graph().placeholder("x")) is None


def test_backward_nodes_take_the_trace_of_their_forward_op():
    graph = Graph()
    x = graph.placeholder("x")
    forward = graph.call_function(torch.sin, (x,))
    backward = graph.call_function(torch.cos, (forward,))
    other = graph.call_function(torch.cos, (forward,))
    forward.meta |= {
        "seq_nr": 3,
        "stack_trace": 'File "model.py", line 7, in forward\n    y = sin(x)',
    }
    backward.meta["seq_nr"] = 3
    other.meta["seq_nr"] = 4
    copy_origins_to_backward(graph)
    assert origin_of(backward) == "model.py:7"
    assert origin_of(other) is None
