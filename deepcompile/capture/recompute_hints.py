"""Values that backward computes again from something no larger, rather than load.

Torch's partitioner weighs bytes and does not know our kernels. For LayerNorm it saves the
normalised rows (and the deviation) instead of the input, mean and deviation, because that is one
number a row less; so the forward kernel writes a matrix more, while the input lies in memory
anyway. The same happens to the exponentials of a log-softmax.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten

_SMALL = 4  # an input this many times smaller than the result costs nothing to keep
_TYPICAL_EXTENT = 64  # of a symbolic size without a hint

COPIES = (aten._to_copy.default, aten.clone.default)
REDUCTIONS = frozenset(
    (
        aten.sum, aten.mean, aten.prod, aten.any, aten.all, aten.amax, aten.amin, aten.max,
        aten.min, aten.argmax, aten.argmin, aten.var, aten.var_mean, aten.std, aten.logsumexp,
    )
)  # fmt: skip


def prefer_recomputing(joint: Graph) -> int:
    """Mark values of `joint` that must not be saved; the number of them.

    A value is marked when a pointwise op makes it from one input of its size or less (and others
    much smaller), when no kernel but its own would write it in forward, and when backward reads it
    only in kernels that can compute it on the way. Saving its input instead is then never more
    bytes and one write less. Marks already there are kept.
    """
    gradients = _not_needed_by_forward(joint)
    free: set[Node] = {
        node
        for node in joint.nodes
        if node.meta.get("recompute") is CheckpointPolicy.MUST_RECOMPUTE
    }
    marked = 0
    for node in joint.nodes:
        if node.op != "call_function" or "recompute" in node.meta or not _is_pointwise(node):
            continue
        if node in gradients.of_tangents or not _grows_from_one_input(node, free):
            continue
        users = list(_users_through_views(node))
        if not any(user in gradients.backward for user in users):
            continue
        if all(_is_fusible(user) and not _is_broadcast(node, user) for user in users):
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
            marked += 1
    return marked


class _Gradients:
    """Nodes that depend on tangents, and all that the outputs of forward do not need."""

    def __init__(self) -> None:
        self.of_tangents: set[Node] = set()
        self.backward: set[Node] = set()


def _not_needed_by_forward(joint: Graph) -> _Gradients:
    found = _Gradients()
    for node in joint.nodes:
        is_tangent = node.op == "placeholder" and str(node.target).startswith("tangents")
        if is_tangent or any(source in found.of_tangents for source in node.all_input_nodes):
            found.of_tangents.add(node)
    for node in reversed(joint.nodes):
        if node.op == "output":
            continue
        if node in found.of_tangents or (
            node.users and all(user in found.backward for user in node.users)
        ):
            found.backward.add(node)
    return found


def _is_pointwise(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or target in COPIES


def _is_view(node: Node) -> bool:
    return bool(getattr(node.target, "is_view", False))


def _is_fusible(node: Node) -> bool:
    if node.op != "call_function":
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return _is_pointwise(node) or packet in REDUCTIONS


def _is_broadcast(node: Node, user: Node) -> bool:
    """Whether `user` makes something much larger of `node`, as of a row statistic."""
    return (_bytes(user) or 0) >= _SMALL * (_bytes(node) or 0)


def _users_through_views(node: Node) -> Iterator[Node]:
    for user in node.users:
        if _is_view(user):
            yield from _users_through_views(user)
        else:
            yield user


def _grows_from_one_input(node: Node, free: set[Node]) -> bool:
    """Whether all inputs but one are small and that one has no more bytes than the result."""
    size = _bytes(node)
    if size is None:
        return False
    large = 0
    for source in node.all_input_nodes:
        bytes_read = 0 if source in free else _bytes(source)
        if bytes_read is None or bytes_read > size:
            return False
        large += bytes_read * _SMALL > size
    return large <= 1


def _bytes(node: Node) -> int | None:
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return 0 if isinstance(val, torch.SymInt | torch.SymFloat | int | float) else None
    count = 1
    for extent in val.shape:
        count *= extent if isinstance(extent, int) else _hint(extent)
    return count * val.element_size()


def _hint(extent: torch.SymInt) -> int:
    hint = getattr(extent.node, "hint", None)
    return int(hint) if hint is not None else _TYPICAL_EXTENT
