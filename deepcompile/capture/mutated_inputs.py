"""Backward must not read an input that forward overwrites: keep what it needs from before.

Torch's partitioner counts every graph input as free to save and recomputes from it. An input that
the forward graph writes back with `copy_` (a buffer that moves, a cache) has its new contents by
then, and gradients come out wrong without a word. (Seen in torch 2.13 with its own compiler too:
`self.seen.add_(x.sum(0)); return linear(x) * self.seen`.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten


def keep_values_before_mutation(joint: Graph, mutated_primals: Iterable[int] = ()) -> int:
    """Forbid to recompute from inputs that forward overwrites; the number of such inputs.

    These are the targets of `copy_` nodes and the primals with the given positions. What forward
    computes from them directly, or through views, is marked to be saved if backward needs it. An
    input that the gradient itself reads is cloned first.
    """
    names = {f"primals_{position + 1}" for position in mutated_primals}
    mutated = {
        node: None for node in joint.nodes if node.op == "placeholder" and node.target in names
    }
    for node in joint.nodes:
        if node.target is aten.copy_.default and node.args[0].op == "placeholder":
            mutated[node.args[0]] = None
    if not mutated:
        return 0
    gradients = _depending_on_tangents(joint)
    for source in mutated:
        readers = _readers_through_views(source, gradients)
        if any(reader in gradients for reader in readers):
            _read_through_clone(joint, source)
            continue
        for reader in readers:
            reader.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return len(mutated)


def _depending_on_tangents(joint: Graph) -> set[Node]:
    found: set[Node] = set()
    for node in joint.nodes:
        is_tangent = node.op == "placeholder" and str(node.target).startswith("tangents")
        if is_tangent or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _readers_through_views(source: Node, gradients: set[Node]) -> list[Node]:
    """Nodes that read the memory of `source`; its views are looked through, writes left out."""
    readers, views = [], [source]
    for view in views:
        for user in view.users:
            if user.op == "output" or (_writes(user, source)):
                continue
            if user not in gradients and getattr(user.target, "is_view", False):
                views.append(user)
            else:
                readers.append(user)
    return readers


def _writes(node: Node, source: Node) -> bool:
    return node.target is aten.copy_.default and node.args[0] is source


def _read_through_clone(joint: Graph, source: Node) -> None:
    with joint.inserting_after(source):
        clone = joint.call_function(aten.clone.default, (source,))
    clone.meta = dict(source.meta) | {"recompute": CheckpointPolicy.MUST_SAVE}
    source.replace_all_uses_with(
        clone,
        delete_user_cb=lambda user: (
            user is not clone and user.op != "output" and not _writes(user, source)
        ),
    )
