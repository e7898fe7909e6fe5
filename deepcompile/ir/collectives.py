"""Which operators of a graph are collectives: the start of one, and the wait for its end.

`all_gather_into_tensor` and its like return at once; their result is there, and their input no
longer read, when `wait_tensor` has been called on the result. That hands on the tensor it is given.
"""

from __future__ import annotations

from typing import Any

import torch

_NAMESPACE = "_c10d_functional"


def is_collective(target: Any) -> bool:
    """Whether an operator starts a collective or waits for one: all ranks call it in one order."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace == _NAMESPACE


def is_launch(target: Any) -> bool:
    """Whether an operator returns before it is done with its input and its result."""
    return is_collective(target) and not is_wait(target)


def is_wait(target: Any) -> bool:
    """Whether an operator waits for the one that its argument is a result of."""
    return is_collective(target) and target._schema.name == f"{_NAMESPACE}::wait_tensor"
