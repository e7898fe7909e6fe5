"""Graphs folded into blocks: one for each module, or each line of the user's program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deepcompile.inspect.ir_text import RETURN, IRGraph, IRNode

INPUTS = "inputs"
"""The block of placeholders and constants."""
TOP = "(top)"
"""The block of what is in no module but the model itself, and of what is nowhere."""
_OUTSIDE = frozenset({"placeholder", "get_attr", RETURN})


@dataclass(frozen=True)
class Block:
    """Nodes that belong together.

    Attributes:
        name: a module path, or a file or `file:line` where the text has no modules.
        nodes: names, in order.
        ops: how often each op is called.
        inputs: blocks that it takes values from, with how many values.
        outputs: how many values others take from it.
    """

    name: str
    nodes: tuple[str, ...]
    ops: Mapping[str, int]
    inputs: Mapping[str, int]
    outputs: int


def with_modules(graph: IRGraph, modules: Mapping[str, object]) -> IRGraph:
    """`graph` with the modules that a run recorded: by path, names of nodes with spaces between.

    A node that no module made belongs where a value that it takes comes from, else where it goes.
    """
    path = {
        name: module
        for module, names in modules.items()
        if isinstance(names, str)
        for name in names.split()
    }
    if not path:
        return graph
    known: dict[str, str] = {}
    for node in graph.nodes:
        own = node.module or path.get(node.name)
        if own is None and node.op not in _OUTSIDE:
            own = next((known[name] for name in reversed(node.inputs) if name in known), None)
        if own is not None:
            known[node.name] = own or TOP
    for node in reversed(graph.nodes):
        if node.name not in known and node.op not in _OUTSIDE:
            users = graph.users.get(node.name, ())
            own = next((known[name] for name in users if name in known), None)
            if own is not None:
                known[node.name] = own
    nodes = (node._replace(module=known.get(node.name, "")) for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def namespace(node: IRNode) -> tuple[str, ...]:
    """Where a node belongs: the parts of its module path, else file and line of its origin."""
    if node.op in ("placeholder", "get_attr"):
        return (INPUTS,)
    if node.op == RETURN:
        return ()
    if node.module:
        return tuple(part for part in node.module.split(".") if part)
    file, _, line = node.origin.rpartition(":")
    if not file:
        return ()
    name = file.replace("\\", "/").rpartition("/")[2]
    return (name, f"{name}:{line}")


def blocks(graph: IRGraph, depth: int) -> list[Block]:
    """The blocks of `graph`, in the order of their first nodes; `depth` parts of a name count."""
    block_of = {node.name: ".".join(_kept(namespace(node), depth)) or TOP for node in graph.nodes}
    members: dict[str, list[IRNode]] = {}
    for node in graph.nodes:
        members.setdefault(block_of[node.name], []).append(node)
    used: dict[str, set[str]] = {}
    taken: dict[str, dict[str, set[str]]] = {name: {} for name in members}
    for node in graph.nodes:
        own = block_of[node.name]
        for value in node.inputs:
            source = block_of.get(value)
            if source is not None and source != own:
                used.setdefault(source, set()).add(value)
                taken[own].setdefault(source, set()).add(value)
    return [
        Block(
            name,
            tuple(node.name for node in nodes),
            dict(IRGraph("", tuple(nodes)).op_counts().most_common()),
            {source: len(values) for source, values in taken[name].items()},
            len(used.get(name, ())),
        )
        for name, nodes in members.items()
    ]


def _kept(parts: tuple[str, ...], depth: int) -> tuple[str, ...]:
    """The first `depth` parts; of file and line the last says both."""
    if len(parts) == 2 and parts[1].startswith(f"{parts[0]}:"):
        return parts[:1] if depth == 1 else parts[1:]
    return parts[:depth]


def as_graph(found: list[Block]) -> IRGraph:
    """The blocks as a graph, to draw or to export."""
    return IRGraph(
        "",
        tuple(
            IRNode(
                block.name, "block", "", tuple(block.inputs), f"{len(block.nodes)} nodes",
                ", ".join(f"{op} x{count}" for op, count in list(block.ops.items())[:6]), "", "", 0,
            )
            for block in found
        ),
    )  # fmt: skip
