"""What a joint graph is made of: forward, backward, storages, what may be computed again."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

from ...capture import philox
from ...capture.offload import OFFLOAD_START, OFFLOAD_WAIT, RELOAD_WAIT, STARTS, WAITS
from ...capture.recompute_hints import COPIES, REDUCTIONS
from ...cost.flops import extent_of, flops_of
from ...cost.rates import Rates
from ...ir.collectives import communicates
from .scratch import scratch_of

aten = torch.ops.aten

_MADE = frozenset((aten.full, aten.zeros, aten.ones, aten.arange, aten.scalar_tensor, aten.empty))
_GATHERS = frozenset((aten.index, aten.gather, aten.embedding, aten.cat, aten.constant_pad_nd))
_KNOWN_NAMESPACES = frozenset(("aten", "prims", "deepcompile", "_operator"))


@dataclass
class Joint:
    """A joint graph of forward and backward, and what the placement of checkpoints needs of it.

    Attributes:
        graph: as AOTAutograd traced it and the joint passes left it.
        forward_outputs: how many of its outputs are those of forward.
        rates: of the device it will run on.
        forward: nodes that need no tangent, in order.
        backward: nodes that do, in order.
        needed: of forward, what backward nodes and outputs read directly.
        position: of each node in the graph.
        sizes: by name of a symbol, for bytes of tensors; without them symbols count as hints.
        bit_exact: whether backward must see the very bits that forward computed, where another
            kernel may add in another order.
        extra: nodes that nothing reads until a plan does: other forms of tensors.
    """

    graph: Graph
    forward_outputs: int
    rates: Rates
    forward: list[Node] = field(default_factory=list)
    backward: list[Node] = field(default_factory=list)
    needed: dict[Node, None] = field(default_factory=dict)
    position: dict[Node, int] = field(default_factory=dict)
    extra: set[Node] = field(default_factory=set)
    bit_exact: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    _bases: dict[Node, Node] = field(default_factory=dict)
    _nbytes: dict[Node, int] = field(default_factory=dict)
    _seconds: dict[Node, float] = field(default_factory=dict)
    _fusible: dict[Node, bool] = field(default_factory=dict)
    _symbols: dict[Node, bool] = field(default_factory=dict)
    _why_kept: dict[Node, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gradients: set[Node] = set()
        storages: dict[int, Node] = {}
        for number, node in enumerate(self.graph.nodes):
            self.position[node] = number
            if node.op == "output":
                continue
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                key = value.untyped_storage()._cdata
                self._bases[node] = storages.setdefault(key, node)
            if is_tangent(node) or any(source in gradients for source in node.all_input_nodes):
                gradients.add(node)
                if node.op == "call_function":
                    self.backward.append(node)
            elif node.op == "call_function":
                self.forward.append(node)
        for node in self.backward:
            for source in node.all_input_nodes:
                if source not in gradients:
                    self.needed[source] = None
        for node in self.outputs[self.forward_outputs :]:
            if isinstance(node, Node) and node not in gradients:
                self.needed[node] = None

    def add(self, extra: Mapping[Node, list[Node]]) -> None:
        """Take in nodes that were written behind others, each with a storage of its own.

        But for what is waited for: that is what was started.
        """
        order: list[Node] = []
        for node in self.forward:
            order += (node, *extra.get(node, ()))
        self.forward = order
        for node in (node for nodes in extra.values() for node in nodes):
            self.extra.add(node)
            if node.target is RELOAD_WAIT:
                self._bases[node] = node.all_input_nodes[0]

    def take_bases(self, bases: Mapping[Node, Node]) -> None:
        """Of nodes, what made the storage that they are views of, where values do not tell."""
        self._bases.update(bases)

    @cached_property
    def outputs(self) -> list[Any]:
        """Those of forward, then those of backward: gradients."""
        (output,) = self.graph.find_nodes(op="output")
        return list(output.args[0])

    @cached_property
    def required(self) -> frozenset[Node]:
        """The forward nodes that outputs of forward depend on."""
        stack = [n for n in self.outputs[: self.forward_outputs] if isinstance(n, Node)]
        found: set[Node] = set(stack)
        while stack:
            for source in stack.pop().all_input_nodes:
                if source not in found:
                    found.add(source)
                    stack.append(source)
        return frozenset(found)

    def base(self, node: Node) -> Node:
        """The node that made the storage which `node` is a view of; itself when it is none."""
        return self._bases.get(node, node)

    def scratch(self, node: Node) -> int:
        """Bytes that its call takes and gives back, beside its results."""
        return scratch_of(node, self.nbytes)

    def nbytes(self, node: Node) -> int:
        """Bytes of the storage of `node`; 0 of what is no tensor."""
        found = self._nbytes.get(node)
        if found is None:
            found = self._nbytes[node] = bytes_of(self.base(node), self.sizes)
        return found

    def is_fusible(self, node: Node) -> bool:
        """Whether kernels of ours compute it, so that it may never be in memory."""
        found = self._fusible.get(node)
        if found is None:
            found = self._fusible[node] = is_fusible(node)
        return found

    def why_kept(self, node: Node) -> str | None:
        """Why a forward node is never computed again, if that is so."""
        if node not in self._why_kept:
            reason = why_kept(node)
            if self.bit_exact and getattr(node.target, "overloadpacket", None) in REDUCTIONS:
                reason = "another kernel might add in another order"
            self._why_kept[node] = reason
        return self._why_kept[node]

    def is_symbol(self, node: Node) -> bool:
        """Whether it is a size rather than a tensor."""
        found = self._symbols.get(node)
        if found is None:
            found = self._symbols[node] = is_symbol(node)
        return found

    def is_view(self, node: Node) -> bool:
        """Whether it costs nothing: it only looks at memory that another node made."""
        return self.base(node) is not node

    def seconds(self, node: Node) -> float:
        """What computing it once takes by itself, with all it reads and writes in memory."""
        found = self._seconds.get(node)
        if found is None:
            found = self._seconds[node] = self._alone(node)
        return found

    def transfer_seconds(self, node: Node) -> float:
        """What the copy that a node starts takes on the link, once those before it are done."""
        return _tensor_bytes(node.meta["val"]) / self.rates.link

    def _alone(self, node: Node) -> float:
        if self.is_view(node) or node.target is operator.getitem or node.op != "call_function":
            return 0.0
        if node.target in WAITS:
            return 0.0
        if node.target in STARTS:
            return self.rates.launch  # the copy is what is waited for, see `transfers`
        moved = bytes_of(node) + sum(bytes_of(source) for source in node.all_input_nodes)
        return self.rates.seconds(moved, flops_of(node), dtype_of(node))


def is_tangent(node: Node) -> bool:
    """Whether it is an input that backward gets from outside."""
    return node.op == "placeholder" and str(node.target).startswith("tangents")


def is_symbol(node: Node) -> bool:
    """Whether it is a size rather than a tensor."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int)


def dtype_of(node: Node) -> str:
    """The name that rates are listed under."""
    value = node.meta.get("val")
    while isinstance(value, tuple | list) and value:
        value = value[0]
    short = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}
    return short.get(value.dtype, "f32") if isinstance(value, torch.Tensor) else "f32"


def bytes_of(node: Node, sizes: Mapping[str, int] | None = None) -> int:
    """Bytes that a node takes on the device, for sizes of symbols or else for their hints."""
    if node.target in (OFFLOAD_START, OFFLOAD_WAIT):
        return 0
    return sum(_tensor_bytes(value, sizes) for value in _tensors(node.meta.get("val")))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _tensor_bytes(value: torch.Tensor, sizes: Mapping[str, int] | None = None) -> int:
    # A view that repeats its memory (expand) has more elements than bytes.
    return (
        math.prod(
            extent_of(size, sizes)
            for size, stride in zip(value.shape, value.stride(), strict=True)
            if not (isinstance(stride, int) and stride == 0)
        )
        * value.element_size()
    )


def is_fusible(node: Node) -> bool:
    """Whether kernels of ours compute it, so that it may never be in memory."""
    if node.op != "call_function":
        return False
    target: Any = node.target
    if target is operator.getitem:
        return is_fusible(node.all_input_nodes[0])
    packet = getattr(target, "overloadpacket", None)
    if packet in REDUCTIONS or packet in _GATHERS or packet in _MADE or target in COPIES:
        return True
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.pointwise in target.tags
        or (target.is_view and target not in WAITS)
        or target in _DRAWS
    )


_DRAWS = (
    philox.philox_uniform,
    philox.philox_normal,
    philox.philox_uniform_part,
    philox.philox_normal_part,
)


def why_kept(node: Node) -> str | None:
    """Why no forward node like this is ever computed again, if that is so."""
    if node.op != "call_function":
        return None
    policy = node.meta.get("recompute")
    if policy in (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE):
        return "marked to be saved"
    target: Any = node.target
    if target is operator.getitem or is_symbol(node):
        return None
    if not isinstance(target, torch._ops.OpOverload):
        return "a higher-order or unknown operator"
    if communicates(target):
        # Parameters of which ranks have shares are gathered again.
        return None if must_recompute(node) else "a collective"
    if target._schema.is_mutable:
        return "it writes into its input"
    if torch.Tag.nondeterministic_seeded in target.tags and not _is_attention_as_given(node):
        return "it draws random numbers"
    if target.namespace not in _KNOWN_NAMESPACES:
        return f"a custom operator ({target.namespace})"
    return None


def _is_attention_as_given(node: Node) -> bool:
    """Attention that could drop out, and does not."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or "scaled_dot_product" not in schema.name:
        return False
    for number, argument in enumerate(schema.arguments):
        if argument.name == "dropout_p":
            given = node.args[number] if number < len(node.args) else node.kwargs.get("dropout_p")
            return bool((argument.default_value if given is None else given) == 0)
    return False


def must_recompute(node: Node) -> bool:
    """Whether the user, or what makes kernels cheaper, forbids to save it."""
    return node.meta.get("recompute") in (
        CheckpointPolicy.MUST_RECOMPUTE,
        CheckpointPolicy.PREFER_RECOMPUTE,
    )
