"""Forward and backward of a joint graph in which nothing is out of the ordinary.

Torch's own division copies the joint graph three times, with all that can be computed from what is
saved, and then takes out what is dead: at ten thousand nodes that takes longer than all the rest
of planning. Here a node is copied once, when it is known that its half needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node


def divided_plainly(
    joint: Graph, saved: Sequence[Node], num_fwd_outputs: int
) -> tuple[Graph, Graph] | None:
    """Forward and backward when backward reads no tensors of forward but `saved`.

    Both are as torch's `_extract_fwd_bwd_modules` makes them, without what is dead. None where
    that has more to care about than tensors, for which it must be asked: symbolic sizes, states of
    random numbers, subgraphs, collectives, writes into inputs by backward.
    """
    if not all(map(_is_plain, joint.nodes)) or not all(map(_is_tensor, saved)):
        return None
    placeholders = joint.find_nodes(op="placeholder")
    tangents = [node for node in placeholders if _starts(node, "tangents")]
    primals = [node for node in placeholders if _starts(node, "primals")]
    if len(tangents) + len(primals) < len(placeholders):
        return None
    (output,) = joint.find_nodes(op="output")
    results = list(output.args[0])
    gradients = results[num_fwd_outputs:]
    read = _needed(gradients, {*saved, *tangents})
    kept = [node for node in dict.fromkeys(saved) if node in read]
    writes = [node for node in joint.nodes if _writes_in_forward(node)]
    if not _needed(writes, set(primals)).isdisjoint(tangents) or not read.isdisjoint(writes):
        return None
    forward = _half(joint, primals, [*results[:num_fwd_outputs], *kept], writes)
    backward = _half(joint, [*kept, *tangents], gradients)
    for node in backward.nodes:
        if node.op == "call_function":
            node.meta["autograd_backward"] = True
    return forward, backward


def _is_plain(node: Node) -> bool:
    if node.op == "output":
        return True
    if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
        return False
    if node.op == "placeholder":
        return True
    if node.op != "call_function" or _namespace(node) == "_c10d_functional":
        return False
    if _writes_in_forward(node):
        return True
    is_placed = str(node.meta.get("partitioner_tag")).startswith("must_be_in")
    return not is_placed and not node.is_impure(impure_random=False)


def _namespace(node: Node) -> str:
    return getattr(node.target, "namespace", "")


def _writes_in_forward(node: Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and node.meta.get("partitioner_tag") not in ("is_backward", "must_be_in_backward")
    )


def _is_tensor(node: Node) -> bool:
    is_checked = not node.meta.get("saved_tensor_with_no_vc_check", False)
    return is_checked and isinstance(node.meta.get("val"), torch.Tensor)


def _starts(node: Node, prefix: str) -> bool:
    return str(node.target).startswith(prefix)


def _needed(outputs: Iterable[Any], given: Collection[Node]) -> set[Node]:
    """What `outputs` are computed from, with them, down to what is given."""
    stack = [node for node in outputs if isinstance(node, Node)]
    found = set(stack)
    while stack:
        node = stack.pop()
        if node in given:
            continue
        for source in node.all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found


def _half(
    joint: Graph, inputs: Sequence[Node], outputs: Sequence[Any], writes: Sequence[Node] = ()
) -> Graph:
    half = Graph()
    copies: dict[Node, Node] = {}
    for node in inputs:
        copies[node] = half.placeholder(node.name)
        copies[node].meta = node.meta
    needed = _needed([*outputs, *writes], copies)
    for node in joint.nodes:
        if node in needed and node not in copies:
            copies[node] = half.node_copy(node, copies.__getitem__)
    half.output(tuple(copies[out] if isinstance(out, Node) else out for out in outputs))
    return half
