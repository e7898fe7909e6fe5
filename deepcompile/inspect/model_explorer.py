"""Graphs for Google's Model Explorer: a graph collection as JSON, nested by module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deepcompile.inspect.collapse import namespace
from deepcompile.inspect.ir_text import IRGraph, IRNode


def collection(label: str, graphs: Iterable[tuple[str, IRGraph]]) -> dict[str, Any]:
    """A graph collection of (id, graph) pairs; write it to a file and open that there."""
    entries = [_graph(name, graph, label) for name, graph in graphs]
    return {"label": label, "graphs": entries}


def _graph(name: str, graph: IRGraph, label: str) -> dict[str, Any]:
    known = {node.name for node in graph.nodes}
    return {
        "id": name,
        "collectionLabel": label,
        "nodes": [_node(node, known) for node in graph.nodes],
    }


def _node(node: IRNode, known: set[str]) -> dict[str, Any]:
    attributes = {
        "type": node.type,
        "call": node.call if node.op != "block" else node.arguments,
        "origin": node.origin,
        "module": node.module,
    }
    found: dict[str, Any] = {
        "id": node.name,
        "label": node.name if node.op == "block" else node.label,
        "namespace": "" if node.op == "block" else "/".join(namespace(node)),
        "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value],
        "incomingEdges": [
            {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(at)}
            for at, name in enumerate(node.inputs)
            if name in known
        ],
    }
    if node.type:
        found["outputsMetadata"] = [
            {"id": "0", "attrs": [{"key": "tensor_shape", "value": node.type}]}
        ]
    return found
