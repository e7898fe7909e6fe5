"""One walk that decides what each node becomes, then one copy of what is left."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_arg

from deepcompile.passes.canonicalise.casts import CASTS, is_detour, only_converts
from deepcompile.passes.canonicalise.identities import IDENTITIES, source_of
from deepcompile.passes.canonicalise.layout import (
    argument,
    extents,
    is_contiguous,
    same_layout,
    value,
)
from deepcompile.passes.canonicalise.memory import Memory
from deepcompile.passes.canonicalise.targets import target_of
from deepcompile.passes.canonicalise.views import (
    PERMUTES,
    RESHAPES,
    compose,
    is_identity,
    permutation,
    size_argument,
)
from deepcompile.pipeline.protocol import PassContext, PassResult

aten = torch.ops.aten
prims = torch.ops.prims


def rewrite(module: GraphModule, ctx: PassContext) -> PassResult:
    """A canonical copy of `module`; `module` itself when nothing is to be done."""
    walk = _Walk(module.graph, ctx)
    for node in module.graph.nodes:
        walk.visit(node)
    walk.find_dead_code()
    if not walk.stats:
        return PassResult(module, changed=False)
    return PassResult(_copy(module, walk), changed=True, stats=dict(walk.stats))


class _View(NamedTuple):
    """A view of a node, as far as chains go: `order` for permutations, None for others."""

    base: Node
    order: tuple[int, ...] | None = None


class _Call(NamedTuple):
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Walk:
    """Decisions about the nodes of one graph, which itself stays as it is.

    replaced: nodes that give way to another, earlier one. calls: nodes that become another call.
    dead: nodes that nobody needs.
    """

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph = graph
        self.ctx = ctx
        self.memory = Memory(graph)
        self.replaced: dict[Node, Node] = {}
        self.calls: dict[Node, _Call] = {}
        self.dead: set[Node] = set()
        self.stats: Counter[str] = Counter()
        self._joint = ctx.kind == "joint"
        self._views: dict[Node, _View] = {}
        self._seen: dict[Any, Node] = {}

    def current(self, node: Node) -> Node:
        """The node that stands for `node` now."""
        return self.replaced.get(node, node)

    def visit(self, node: Node) -> None:
        """Decide about one node; those before it are decided."""
        if node.op == "get_attr":
            self._share(node, ("get_attr", node.target))
        if node.op != "call_function":
            return
        target = node.target
        if target in IDENTITIES and self._drop_no_op(node):
            return
        if target in PERMUTES:
            done = self._fold_permutes(node)
        elif target in RESHAPES:
            done = self._fold_reshapes(node)
        elif target is aten.expand.default:
            done = self._fold_expands(node)
        else:
            done = target in CASTS and self._merge_casts(node)
        if not done and target_of(target).shareable:
            self._share(node, self._key(node))

    def find_dead_code(self) -> None:
        """Collect what neither the output nor an effect needs."""
        live: set[Node] = set()
        for node in reversed(self.graph.nodes):
            if node in self.replaced:
                continue
            if node not in live and self._may_die(node) and self._allow("dead-code", node):
                self.dead.add(node)
                continue
            call = self.calls.get(node)
            if call is None:
                for source in node.all_input_nodes:
                    live.add(self.current(source))
            else:
                map_arg((call.args, call.kwargs), live.add)

    def _may_die(self, node: Node) -> bool:
        if node.op == "get_attr":
            return True
        return node.op == "call_function" and not target_of(node.target).effects

    def _allow(self, name: str, node: Node) -> bool:
        allowed = self.ctx.allow(name, node)
        if allowed:
            self.stats[name] += 1
        return allowed

    def _replace(self, name: str, node: Node, source: Node) -> bool:
        """Let `source` stand for `node`, if memory and context permit."""
        if not self.memory.may_replace(node, source) or not self._allow(name, node):
            return False
        self.memory.replace(node, source)
        self.replaced[node] = source
        return True

    # ------------------------------------------------------------------------------ no-op

    def _drop_no_op(self, node: Node) -> bool:
        source = source_of(node)
        if not isinstance(source, Node):
            return False
        source = self.current(source)
        return (
            same_layout(value(node), value(source))
            and IDENTITIES[node.target](node)
            and self._replace("no-op", node, source)
        )

    # ------------------------------------------------------------------------- fold-views

    def _fold_permutes(self, node: Node) -> bool:
        order, source = permutation(node), self._source(node)
        if order is None or source is None:
            return False
        inner = self._views.get(source)
        if inner is None or inner.order is None:
            self._views[node] = _View(source, order)
            return False
        order, base = compose(order, inner.order), inner.base
        if is_identity(order) and same_layout(value(node), value(base)):
            return self._replace("fold-views", node, base)
        if not self._fold(node, _Call(aten.permute.default, (base, list(order)), {})):
            return False
        self._views[node] = _View(base, order)
        return False

    def _fold_reshapes(self, node: Node) -> bool:
        source, tensor = self._source(node), value(node)
        if source is None or tensor is None or not is_contiguous(tensor):
            return False
        inner = self._views.get(source)
        if inner is None:
            # Read row by row, the tensor is its source: so is any view of it.
            known = value(source)
            if known is not None and is_contiguous(known):
                self._views[node] = _View(source)
            return False
        if inner.order is not None or inner.base is source:
            return False
        base, size = inner.base, size_argument(node)
        if same_layout(tensor, value(base)):
            return self._replace("fold-views", node, base)
        if size is None:
            return False
        size = map_arg(size, self.current)
        if self._fold(node, _Call(aten.view.default, (base, size), {})):
            self._views[node] = _View(base)
        return False

    def _fold_expands(self, node: Node) -> bool:
        source = self._source(node)
        if source is None or self._target(source) is not aten.expand.default:
            return False
        size = size_argument(node)
        call = self.calls.get(source)
        base = self.current(argument(source, 0, "self")) if call is None else call.args[0]
        if size is None or argument(node, 2, "implicit") or argument(source, 2, "implicit"):
            return False
        self._fold(node, _Call(aten.expand.default, (base, map_arg(size, self.current)), {}))
        return False

    def _fold(self, node: Node, call: _Call) -> bool:
        if not self._allow("fold-views", node):
            return False
        self.calls[node] = call
        return True

    def _source(self, node: Node) -> Node | None:
        source = argument(node, 0, "self")
        return self.current(source) if isinstance(source, Node) else None

    def _target(self, node: Node) -> Any:
        call = self.calls.get(node)
        return node.target if call is None else call.target

    # ------------------------------------------------------------------------ merge-casts

    def _merge_casts(self, node: Node) -> bool:
        inner = argument(node, 0, "self", argument(node, 0, "a"))
        if not isinstance(inner, Node) or (inner := self.current(inner)).target not in CASTS:
            return False
        call = self.calls.get(inner)
        base = argument(inner, 0, "self", argument(inner, 0, "a")) if call is None else call.args[0]
        if not isinstance(base, Node):
            return False
        base = self.current(base)
        middle, source, result = value(inner), value(base), value(node)
        if middle is None or source is None or result is None:
            return False
        if not is_detour(source.dtype, middle.dtype, result.dtype):
            return False
        if extents(source.stride()) != extents(middle.stride()) or source.device != middle.device:
            return False
        if not only_converts(inner.target, inner) or self.memory.is_written(base):
            return False
        if same_layout(result, source) and only_converts(node.target, node):
            return self._replace("merge-casts", node, base)
        if self._allow("merge-casts", node):
            self.calls[node] = _Call(node.target, (base, *node.args[1:]), dict(node.kwargs))
        return False

    # --------------------------------------------------------------- common-subexpression

    def _key(self, node: Node) -> Any:
        call = self.calls.get(node)
        target = node.target if call is None else call.target
        view = self._views.get(node)
        if view is not None and view.order is not None:
            return (aten.permute.default, view.base, view.order)
        args: Any = node.args if call is None else call.args
        kwargs = node.kwargs if call is None else call.kwargs
        if (target in RESHAPES or target is aten.expand.default) and not kwargs:
            tensor, source = value(node), args[0]
            if tensor is not None and isinstance(source, Node):
                kind = "expand" if target is aten.expand.default else "view"
                return (kind, self.current(source), extents(tensor.shape), extents(tensor.stride()))
        parts = [self._part(arg) for arg in args]
        if kwargs:
            parts.append(tuple([(name, self._part(kwargs[name])) for name in sorted(kwargs)]))
        elif (
            target_of(target).commutative
            and len(args) == 2
            and isinstance(args[0], Node)
            and isinstance(args[1], Node)
        ):
            parts.sort(key=id)
        # Copies that backward makes of one value at different times are there to be forgotten.
        copy = node.meta.get("recomputed_for")
        if copy is not None:
            parts.append(("recomputed for", copy))
        return (target, *parts)

    def _part(self, arg: Any) -> Any:
        """An argument as something to look up by: unlike in Python, 1, 1.0 and True differ."""
        kind = type(arg)
        if kind is Node:
            return self.replaced.get(arg, arg)
        if kind is int or arg is None or kind is str:
            return arg
        if kind is float:
            return ("float", repr(arg))
        if isinstance(arg, list | tuple):
            return tuple([self._part(item) for item in arg])
        if isinstance(arg, slice):
            return ("slice", self._part(arg.start), self._part(arg.stop), self._part(arg.step))
        return (kind, str(arg) if kind is complex else arg)

    def _share(self, node: Node, key: Any) -> None:
        try:
            first = self._seen.setdefault(key, node)
        except TypeError:  # an argument that cannot be looked up by
            return
        if first is node or not self._interchangeable(first, node):
            return
        self._replace("common-subexpression", node, first)

    def _interchangeable(self, first: Node, node: Node) -> bool:
        if node.op == "get_attr":
            return True
        if first.meta.get("recompute") != node.meta.get("recompute"):
            return False
        if self._joint and not target_of(node.target).cheap:
            tag = "partitioner_tag"
            if first.meta.get(tag) != node.meta.get(tag):
                return False
        if any(self.memory.is_written(source) for source in node.all_input_nodes):
            return False
        if isinstance(node.meta.get("val"), torch.Tensor):
            return same_layout(value(first), value(node))
        return True


def _copy(module: GraphModule, walk: _Walk) -> GraphModule:
    old = module.graph
    graph = Graph()
    copies: dict[Node, Node] = {}

    def now(node: Node) -> Node:
        return copies[walk.replaced.get(node, node)]

    for node in old.nodes:
        if node in walk.replaced or node in walk.dead:
            continue
        call = walk.calls.get(node)
        if call is None:
            copies[node] = graph.node_copy(node, now)
            continue
        args, kwargs = map_arg((call.args, call.kwargs), now)
        copies[node] = made = graph.create_node(
            "call_function", call.target, args, kwargs, name=node.name, type_expr=node.type
        )
        made.meta = copy.copy(node.meta)
    graph._codegen = copy.copy(old._codegen)
    # Passes read nodes only; Python source is written when somebody calls or prints the graph.
    result = _LazyGraphModule(module, graph, module.__class__.__name__)
    result.meta = dict(module.meta)
    return result
