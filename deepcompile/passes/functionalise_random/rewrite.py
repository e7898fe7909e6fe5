"""Random ATen ops as philox nodes and pointwise arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from deepcompile.capture import philox
from deepcompile.pipeline.protocol import PassContext, PassResult

aten = torch.ops.aten

#: Steps of `philox_uniform`; probabilities are rounded to them, so that comparing is exact.
_STEPS = 1 << 24
#: Random bits that a half-precision type holds: more would round up to 1.0.
_HALF_BITS = {torch.bfloat16: 8, torch.float16: 11}


class Emitter:
    """Adds nodes before one random op, with fake values and that op's origin in their meta."""

    def __init__(self, graph: Graph, seeds: Seeds, joint: bool) -> None:
        self.graph = graph
        self._seeds = seeds
        self._joint = joint
        self._source: Node | None = None

    def replace(self, source: Node) -> None:
        """Emit on behalf of `source` from now on."""
        self._source = source

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A node of `target`; recomputed in backward, where this is a joint graph."""
        assert self._source is not None
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {k: v for k, v in self._source.meta.items() if k not in ("val", "tensor_meta")}
        node.meta["val"] = target(*_values(args), **_values(kwargs))
        return node

    def recomputed(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Like `call`, for what must not be saved: it costs less to compute than to load."""
        node = self.call(target, *args, **kwargs)
        if self._joint:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        return node

    def size(self, like: Node) -> list[Any]:
        """The shape of a tensor node, symbolic extents as nodes."""
        return [
            extent if isinstance(extent, int) else self.call(aten.sym_size.int, like, dim)
            for dim, extent in enumerate(like.meta["val"].shape)
        ]

    def draw(self, kind: Any, size: Sequence[Any], device: torch.device) -> Node:
        """float32 random numbers of the next site."""
        assert self._source is not None
        fake = self._source.meta["val"]
        fake = fake[0] if isinstance(fake, list | tuple) else fake
        seed, site = self._seeds.next(device, fake)
        node = self.graph.call_function(
            kind, (seed, site, list(size)), {"dtype": torch.float32, "device": device}
        )
        node.meta = {k: v for k, v in self._source.meta.items() if k not in ("val", "tensor_meta")}
        node.meta["val"] = fake.new_empty(_values(list(size)), dtype=torch.float32, device=device)
        if self._joint:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        return node

    def cast(self, value: Node, dtype: torch.dtype) -> Node:
        """`value` as `dtype`, recomputed; the same node where it has that type."""
        if value.meta["val"].dtype == dtype:
            return value
        return self.recomputed(aten._to_copy.default, value, dtype=dtype)


class Seeds:
    """The seed node of each device in one graph, and the next free site."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: dict[torch.device, Node] = {}
        self._site = 0

    def next(self, device: torch.device, fake: torch.Tensor) -> tuple[Node, int]:
        """Seed and site of one more random op; `fake` is any fake tensor of the graph."""
        if device not in self._nodes:
            last_input = [node for node in self._graph.nodes if node.op == "placeholder"][-1:]
            place = (
                self._graph.inserting_after(last_input[0])
                if last_input
                else self._graph.inserting_before(next(iter(self._graph.nodes)))
            )
            with place:
                seed = self._graph.call_function(philox.philox_seed, (), {"device": device})
            seed.meta["val"] = fake.new_empty((1,), dtype=torch.int64, device=device)
            self._nodes[device] = seed
        self._site += 1
        return self._nodes[device], self._site - 1


def rewrite(module: GraphModule, ctx: PassContext) -> PassResult:
    """A copy of `module` in which random ops are functions of a seed; see the pass."""
    sites = [node for node in module.graph.nodes if node.target in _RULES]
    if getattr(ctx.options, "rng", "philox") == "eager" or not sites:
        return PassResult(module, changed=False)

    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(module.graph, copies), type_expr=module.graph.output_node().type)
    graph.output_node().meta = dict(module.graph.output_node().meta)
    emit = Emitter(graph, Seeds(graph), joint=ctx.kind == "joint")
    rewritten = 0
    for source in sites:
        node = copies[source]
        if not _supported(node):
            ctx.note("random-left-alone", node=node.name, op=str(node.target))
            continue
        if not ctx.allow(_rewrite_name(node), source):
            continue
        emit.replace(node)
        with graph.inserting_before(node):
            result = _RULES[node.target](emit, node)
        _substitute(graph, node, result)
        rewritten += 1
    if not rewritten:
        return PassResult(module, changed=False)
    result_module = GraphModule(module, graph)
    result_module.meta = dict(module.meta)
    return PassResult(result_module, changed=True, stats={"random-ops": rewritten})


def _rewrite_name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0].strip("_").replace("_", "-")


def _substitute(graph: Graph, node: Node, result: Node | tuple[Node, ...]) -> None:
    if isinstance(result, tuple):
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(result)
    graph.erase_node(node)


def _values(tree: Any) -> Any:
    if isinstance(tree, Node):
        return tree.meta["val"]
    if isinstance(tree, list | tuple):
        return type(tree)(_values(item) for item in tree)
    if isinstance(tree, dict):
        return {key: _values(item) for key, item in tree.items()}
    return tree


def _supported(node: Node) -> bool:
    """Whether a rule of `_RULES` keeps what this call means."""
    val = node.meta.get("val")
    val = val[0] if isinstance(val, list | tuple) else val
    if not isinstance(val, torch.Tensor) or val.layout != torch.strided:
        return False
    if node.kwargs.get("generator") is not None or node.kwargs.get("pin_memory"):
        return False
    if node.target in _MASKS:
        return True
    return val.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _keep_mask(emit: Emitter, size: Sequence[Any], device: torch.device, keep: float) -> Node:
    uniform = emit.draw(philox.philox_uniform, size, device)
    return emit.recomputed(aten.lt.Scalar, uniform, round(keep * _STEPS) / _STEPS)


def _native_dropout(emit: Emitter, node: Node) -> tuple[Node, Node]:
    x, p, train = node.args[0], float(node.args[1]), _arg(node, 2, "train", None)  # type: ignore[arg-type]
    assert isinstance(x, Node)
    val = x.meta["val"]
    if train is False or p == 0.0:
        return x, emit.call(aten.ones_like.default, x, dtype=torch.bool)
    mask = _keep_mask(emit, emit.size(x), val.device, 1.0 - p)
    masked = emit.call(aten.mul.Tensor, x, emit.cast(mask, val.dtype))
    scale = 0.0 if p == 1.0 else 1.0 / (1.0 - p)
    return emit.call(aten.mul.Tensor, masked, scale), mask


def _bernoulli_p(emit: Emitter, node: Node) -> Node:
    x, keep = node.args[0], _arg(node, 1, "p", 0.5)
    assert isinstance(x, Node)
    val = node.meta["val"]
    return emit.cast(_keep_mask(emit, emit.size(x), val.device, float(keep)), val.dtype)


def _bernoulli_tensor(emit: Emitter, node: Node) -> Node:
    """`bernoulli(p)` and `bernoulli(like, p)`, `p` a tensor."""
    like = node.args[0]
    p = _arg(node, 1, "p", None) if node.target is not aten.bernoulli.default else like
    assert isinstance(like, Node)
    assert isinstance(p, Node)
    val = node.meta["val"]
    uniform = emit.draw(philox.philox_uniform, emit.size(like), val.device)
    return emit.cast(emit.call(aten.lt.Tensor, uniform, p), val.dtype)


def _unit(emit: Emitter, size: Sequence[Any], val: torch.Tensor) -> Node:
    """Uniform on [0, 1) in the dtype of `val`, which for half precision must not round up to 1."""
    uniform = emit.draw(philox.philox_uniform, size, val.device)
    bits = _HALF_BITS.get(val.dtype)
    if bits is None:
        return uniform
    steps = emit.recomputed(
        aten.floor.default, emit.recomputed(aten.mul.Tensor, uniform, float(1 << bits))
    )
    return emit.cast(emit.recomputed(aten.mul.Tensor, steps, 1.0 / (1 << bits)), val.dtype)


def _gauss(emit: Emitter, size: Sequence[Any], val: torch.Tensor) -> Node:
    return emit.cast(emit.draw(philox.philox_normal, size, val.device), val.dtype)


def _sized(draw: Callable[[Emitter, Sequence[Any], torch.Tensor], Node]) -> Any:
    return lambda emit, node: draw(emit, node.args[0], node.meta["val"])


def _like(draw: Callable[[Emitter, Sequence[Any], torch.Tensor], Node]) -> Any:
    return lambda emit, node: draw(emit, emit.size(node.args[0]), node.meta["val"])


def _uniform_between(emit: Emitter, node: Node) -> Node:
    low, high = float(_arg(node, 1, "from", 0.0)), float(_arg(node, 2, "to", 1.0))
    unit = _unit(emit, emit.size(_tensor(node)), node.meta["val"])
    if high - low != 1.0:
        unit = emit.recomputed(aten.mul.Tensor, unit, high - low)
    return emit.recomputed(aten.add.Tensor, unit, low) if low else unit


def _normal_around(emit: Emitter, node: Node) -> Node:
    mean, std = float(_arg(node, 1, "mean", 0.0)), float(_arg(node, 2, "std", 1.0))
    value = emit.draw(philox.philox_normal, emit.size(_tensor(node)), node.meta["val"].device)
    if std != 1.0:
        value = emit.recomputed(aten.mul.Tensor, value, std)
    if mean:
        value = emit.recomputed(aten.add.Tensor, value, mean)
    return emit.cast(value, node.meta["val"].dtype)


def _exponential(emit: Emitter, node: Node) -> Node:
    rate = float(_arg(node, 1, "lambd", 1.0))
    uniform = emit.draw(philox.philox_uniform, emit.size(_tensor(node)), node.meta["val"].device)
    # Half a step at the bottom instead of 0, and never 1: so the result is finite and not zero.
    inside = emit.recomputed(aten.clamp_min.default, uniform, 0.5 / _STEPS)
    log = emit.recomputed(aten.log.default, inside)
    return emit.cast(emit.recomputed(aten.mul.Tensor, log, -1.0 / rate), node.meta["val"].dtype)


def _tensor(node: Node) -> Node:
    assert isinstance(node.args[0], Node)
    return node.args[0]


def _arg(node: Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


_RULES: dict[Any, Callable[[Emitter, Node], Node | tuple[Node, ...]]] = {
    aten.native_dropout.default: _native_dropout,
    aten.bernoulli.default: _bernoulli_tensor,
    aten.bernoulli.p: _bernoulli_p,
    aten.bernoulli.Tensor: _bernoulli_tensor,
    aten.rand.default: _sized(_unit),
    aten.randn.default: _sized(_gauss),
    aten.rand_like.default: _like(_unit),
    aten.randn_like.default: _like(_gauss),
    aten.uniform.default: _uniform_between,
    aten.normal_functional.default: _normal_around,
    aten.exponential.default: _exponential,
}

#: Ops whose numbers only decide a comparison: 24 bits serve every dtype.
_MASKS = frozenset(
    (
        aten.native_dropout.default,
        aten.bernoulli.default,
        aten.bernoulli.p,
        aten.bernoulli.Tensor,
    )
)
