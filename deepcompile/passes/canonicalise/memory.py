"""Whose memory each node reads, and which of it is written or leaves the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from deepcompile.passes.canonicalise.targets import target_of


class Memory:
    """Owners of memory in one graph, kept up to date as nodes replace each other.

    The owner of a view is the node that allocated what it shows. Memory is *returned* when the
    output, or a view of it there, hands it to the caller.
    """

    def __init__(self, graph: Graph) -> None:
        self._owner: dict[Node, Node] = {}
        self._replaced: dict[Node, Node] = {}
        self._written: set[Node] = set()
        self._returned: set[Node] = set()
        self._outputs: set[Node] = set()
        constants: dict[Any, Node] = {}
        for node in graph.nodes:
            owner = node
            if node.op == "get_attr":
                owner = constants.setdefault(node.target, node)
            elif node.op == "call_function":
                owner = self._visit(node)
            elif node.op == "output":
                map_arg(node.args, self._outputs.add)
            elif node.op != "placeholder":
                self._written.update(map(self.owner, node.all_input_nodes))
            self._owner[node] = owner
        self._returned.update(self._owner[node] for node in self._outputs)

    def _visit(self, node: Node) -> Node:
        target: Any = node.target
        facts = target_of(target)
        if not facts.known:
            self._written.update(map(self.owner, node.all_input_nodes))
            return node
        if not isinstance(target, torch._ops.OpOverload):
            # Of functions of numbers only getitem handles tensors.
            first = node.args[0] if node.args else None
            return self._owner[first] if isinstance(first, Node) else node
        if facts.view:
            first = node.args[0] if node.args else node.kwargs.get("self", node.kwargs.get("a"))
            return self._owner[first] if isinstance(first, Node) else node
        if not target._schema.is_mutable:
            return node
        written = None
        for position, parameter in enumerate(target._schema.arguments):
            if parameter.alias_info is None or not parameter.alias_info.is_write:
                continue
            given: Any = (
                node.args[position]
                if position < len(node.args)
                else node.kwargs.get(parameter.name)
            )
            found: list[Node] = []
            map_arg(given, found.append)
            self._written.update(map(self.owner, found))
            written = found[0] if found else written
        return node if written is None else self.owner(written)

    def owner(self, node: Node) -> Node:
        """The node whose memory `node` shows."""
        owner = self._owner[node]
        while owner in self._replaced:
            owner = self._owner[self._replaced[owner]]
        return owner

    def is_written(self, node: Node) -> bool:
        """Whether something in the graph writes into the memory that `node` shows."""
        return bool(self._written) and self.owner(node) in self._written

    def may_replace(self, node: Node, source: Node) -> bool:
        """Whether readers of `node` may read `source`, which holds the same values, instead."""
        from_outside = source.op in ("placeholder", "get_attr")
        if node in self._outputs and (from_outside or source in self._outputs):
            return node.op == "get_attr"
        mine, theirs = self.owner(node), self.owner(source)
        if mine is theirs:
            return True
        if mine in self._written or theirs in self._written:
            return False
        # The caller may write into what is returned: it must be nobody else's.
        return mine not in self._returned or (
            source is theirs
            and source.op == "call_function"
            and target_of(source.target).known
            and theirs not in self._returned
        )

    def replace(self, node: Node, source: Node) -> None:
        """Take note that `source` stands for `node` from now on."""
        if node in self._outputs:
            self._outputs.add(source)
        mine, theirs = self.owner(node), self.owner(source)
        if mine is theirs:
            return
        if mine in self._returned:
            self._returned.add(theirs)
        self._replaced[node] = source
