"""Inputs of a graph that are no tensors or numbers and only pass through it: meshes of DTensors.

Tensor subclasses with such an object in them make it an input and an output of the graphs that
AOTAutograd gives. A program has no use for them, so they go around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node


def without_opaque_inputs(
    module: GraphModule,
) -> tuple[GraphModule, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """A graph that returns None where it returned such an input, and what makes up for it.

    The second result takes the compiled graph, which is called as in `CompileGraph`, and gives one
    that returns the objects too. Objects that the graph does anything else with stay.
    """
    output = module.graph.output_node()
    placeholders = module.graph.find_nodes(op="placeholder")
    returned = {
        node: number
        for number, node in enumerate(placeholders)
        if _is_opaque(node) and set(node.users) == {output}
    }
    if not returned:
        return module, lambda run: run
    copies: dict[Node, Node] = {}
    graph = Graph()
    results = graph.graph_copy(module.graph, copies)
    places = [
        (place, returned[result])
        for place, result in enumerate(_flat(output))
        if isinstance(result, Node) and result in returned
    ]
    dropped = {copies[node] for node in returned}
    kept = [None if isinstance(r, Node) and r in dropped else r for r in results]  # type: ignore[union-attr]
    graph.output(kept)
    graph.output_node().meta = dict(output.meta)

    def around(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(inputs: list[Any]) -> list[Any]:
            objects = [inputs[number] for _, number in places]
            boxed = getattr(run, "_boxed_call", False)
            found = list(run(inputs) if boxed else run(*inputs))
            for (place, _), value in zip(places, objects, strict=True):
                found[place] = value
            return found

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    return GraphModule(module, graph), around


def _flat(output: Node) -> list[Any]:
    (results,) = output.args
    assert isinstance(results, tuple | list)
    return list(results)


def _is_opaque(node: Node) -> bool:
    value = node.meta.get("val")
    plain = torch.Tensor | int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool
    return value is not None and not isinstance(value, plain)
