"""Graphs with collectives, built node by node with fake values."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

SHAPE = (16, 48)


class Building:
    """A graph with fake values, node by node."""

    def __init__(self, inputs: int) -> None:
        self.graph, self.mode = Graph(), FakeTensorMode()
        self.inputs = [self.graph.placeholder(f"x{number}") for number in range(inputs)]
        with self.mode:
            for node in self.inputs:
                node.meta["val"] = torch.empty(SHAPE)

    def __call__(self, target: Any, *args: Any) -> Node:
        node = self.graph.call_function(target, args)
        with self.mode:
            node.meta["val"] = target(*torch.fx.node.map_arg(args, lambda n: n.meta["val"]))
        return node

    def done(self, *outputs: Node) -> GraphModule:
        self.graph.output(list(outputs))
        return GraphModule({}, self.graph)
