"""Which values of a graph are views: memory that an earlier value has made."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from ..ir.batch_op import BatchOp
from ..ir.collectives import is_wait
from ..ir.kernel_op import KernelOp
from ..passes.lowering.shapes import args_of

aten = torch.ops.aten


def is_alias(node: Node) -> bool:
    """Whether a call gives its first argument's memory under another shape, and does no work."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target is aten._unsafe_view.default:
        return True
    if target is aten.reshape.default:
        return shares(node.meta["val"], args_of(node)[0].meta["val"])
    # Operators of our own that hand on what they get do something: they wait for it.
    return target.is_view and target.namespace != "deepcompile"


def shared_source(node: Node) -> Node | None:
    """The node whose memory the result of another one is; None where it makes its own."""
    if node.op != "call_function" or isinstance(node.target, (KernelOp, BatchOp)):
        return None
    if node.target is aten.copy_.default or is_alias(node) or is_wait(node.target):
        return args_of(node)[0]
    source = args_of(node)[0] if node.target is operator.getitem else node
    if source is not node and is_alias(source):
        return source
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    tensors = (n for n in source.all_input_nodes if isinstance(n.meta["val"], torch.Tensor))
    return next((n for n in tensors if shares(value, n.meta["val"])), None)


def shares(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have one storage."""
    return left.untyped_storage()._cdata == right.untyped_storage()._cdata


def reinterprets(value: torch.Tensor, base: torch.Tensor) -> bool:
    """Whether a view reads the same bytes as other numbers."""
    return (value.dtype, value.is_conj(), value.is_neg()) != (
        base.dtype,
        base.is_conj(),
        base.is_neg(),
    )
