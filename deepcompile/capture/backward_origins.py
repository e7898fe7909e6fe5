"""The user's source line behind the nodes of a backward graph; `ir.origins` reads it."""

from __future__ import annotations

from torch.fx import Graph


def copy_origins_to_backward(joint: Graph) -> None:
    """Give nodes of a joint graph that have no stack trace that of their forward op.

    Autograd gives an op and its gradient the same sequence number (`meta["seq_nr"]`); among the
    nodes with one number the first is the forward op.
    """
    by_number: dict[int, str] = {}
    for node in joint.nodes:
        number = node.meta.get("seq_nr")
        if number is None:
            continue
        trace = node.meta.get("stack_trace")
        if trace:
            by_number.setdefault(number, trace)
        elif number in by_number:
            node.meta["stack_trace"] = by_number[number]
