"""From equal updates to a batch node: the body from the first of them, the rows from all."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from ...ir.batch_op import BatchOp
from ...pipeline.protocol import PassContext, PassResult
from .chains import Chain, find_chains

aten = torch.ops.aten

EXAMPLE = 1 << 16
"""Elements of the example tensors in a body: as many as a layer's matrix, for estimates of cost."""


def batch(module: GraphModule, ctx: PassContext) -> PassResult:
    """Replace equal updates by batch nodes."""
    if ctx.kind == "joint":
        return PassResult(module, False)
    chains, uniform = find_chains(module.graph)
    alike: dict[tuple[Any, ...], list[Chain]] = {}
    for chain in chains:
        alike.setdefault(chain.key, []).append(chain)
    batches = [
        rows
        for rows in alike.values()
        if len(rows) > 1 and ctx.allow("batch-updates", rows[0].calls[0])
    ]
    if not batches:
        return PassResult(module, False)
    result = _Writer(module, batches, uniform).write()
    stats = {"batches": len(batches), "rows": sum(map(len, batches))}
    return PassResult(result, True, stats)


class _Writer:
    def __init__(
        self, module: GraphModule, batches: list[list[Chain]], uniform: dict[Node, int]
    ) -> None:
        self.module = module
        self.batches = batches
        self.uniform = uniform
        self.graph = Graph()
        self.env: dict[Node, Node] = {}

    def write(self) -> GraphModule:
        """Placeholders, then the batches, then what is left."""
        nodes = list(self.module.graph.nodes)
        gone = {node for rows in self.batches for chain in rows for node in chain.calls}
        self._drop_unused(gone)
        rest: list[Node] = []
        for node in nodes:
            if node.op == "placeholder":
                self._copy(node)
            elif node not in gone:
                rest.append(node)
        for number, rows in enumerate(self.batches):
            self._write_batch(f"b{number}", rows)
        for node in rest:
            self._copy(node)
        self.graph._codegen = copy.copy(self.module.graph._codegen)
        result = _LazyGraphModule(self.module, self.graph, self.module.__class__.__name__)
        result.meta = dict(self.module.meta)
        return result

    def _drop_unused(self, gone: set[Node]) -> None:
        """Single values that only the batches read are computed in their bodies."""
        for node in reversed(self.uniform):
            if node.op != "placeholder" and all(user in gone for user in node.users):
                gone.add(node)

    def _copy(self, node: Node) -> None:
        self.env[node] = self.graph.node_copy(node, self.env.__getitem__)

    def _write_batch(self, name: str, rows: list[Chain]) -> None:
        first = rows[0]
        body = _Body(first, self.uniform)
        op = BatchOp(name, body.module, tuple(_is_flat(node) for node in first.columns))
        columns = [list(column) for column in zip(*(row.columns for row in rows), strict=True)]
        env = self.env
        arguments = (
            [env[node] for node in body.shared],
            [[env[node] for node in column] for column in columns],
        )
        call = self.graph.call_function(op)
        call.args = arguments  # set later: `call_function` looks for symbols in each argument
        made = [node for row in rows for node in row.returned]
        call.meta["val"] = tuple(node.meta["val"] for node in made)
        trace = next((t for node in first.calls if (t := node.meta.get("stack_trace"))), None)
        if trace:
            call.meta["stack_trace"] = trace
        for number, node in enumerate(made):
            item = self.graph.call_function(operator.getitem, (call, number))
            item.meta = copy.copy(node.meta)
            env[node] = item


def _is_flat(node: Node) -> bool:
    return bool(node.meta["val"].dim())


class _Body:
    """The graph of one update over one symbolic size."""

    def __init__(self, chain: Chain, uniform: dict[Node, int]) -> None:
        self.graph = Graph()
        self.env: dict[Node, Node] = {}
        self.shared: list[Node] = []
        self.uniform = uniform
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self.size: Any = None
        wanted = self._single_values(chain)
        self.shared = [node for node in wanted if node.op == "placeholder"]
        for node in [*self.shared, *chain.columns]:
            self._placeholder(node)
        with self.mode, torch.no_grad():
            for node in [*(n for n in wanted if n.op != "placeholder"), *chain.calls]:
                self._call(node)
        self.graph.output([self.env[node] for node in chain.returned])
        self.module = _LazyGraphModule(torch.nn.Module(), self.graph)

    def _single_values(self, chain: Chain) -> list[Node]:
        """The shared single values that the update needs, and what they are computed from."""
        found: set[Node] = set()
        stack = [n for call in chain.calls for n in call.all_input_nodes if n in self.uniform]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return [node for node in self.uniform if node in found] if found else []

    def _placeholder(self, node: Node) -> None:
        made = self.graph.placeholder(node.name)
        made.meta = {**node.meta, "val": self._example(node.meta["val"])}
        self.env[node] = made

    def _example(self, value: torch.Tensor) -> torch.Tensor:
        if not value.dim():
            with self.mode:
                return torch.empty((), dtype=value.dtype, device=value.device)
        if self.size is None:
            context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
            known = torch.empty(EXAMPLE, dtype=torch.uint8, device="meta")
            self.size = self.mode.from_tensor(known, symbolic_context=context).shape[0]
        with self.mode:
            return torch.empty(self.size, dtype=value.dtype, device=value.device)

    def _call(self, node: Node) -> None:
        target: Any = node.target
        if target is aten.expand.default:  # to the shape that the update's tensors have anyway
            self.env[node] = self.env[node.args[0]]  # type: ignore[index]
            return
        made = self.graph.node_copy(node, self.env.__getitem__)
        arguments, keywords = torch.fx.node.map_arg(
            (made.args, made.kwargs), lambda argument: argument.meta["val"]
        )
        made.meta["val"] = target(*arguments, **keywords)
        self.env[node] = made
