"""Which operators of a graph communicate: the start of a collective, the wait for its end, markers.

`all_gather_into_tensor` and its like return at once; their result is there, and their input no
longer read, when `wait_tensor` has been called on the result. That hands on the tensor it is given.
Markers of parameters on a mesh, where no pass has put a local program in their place, communicate
too, and are done when they return.
"""

from __future__ import annotations

from typing import Any

import torch

_NAMESPACE = "_c10d_functional"
_MARKERS = frozenset(("deepcompile::unshard", "deepcompile::reshard_grad"))


def communicates(target: Any) -> bool:
    """Whether ranks meet in an operator, so that all call it, as often and in the same order."""
    return isinstance(target, torch._ops.OpOverload) and (
        target.namespace == _NAMESPACE or target._schema.name in _MARKERS
    )


def is_launch(target: Any) -> bool:
    """Whether an operator returns before it is done with its input and its result."""
    return _is_functional(target) and not is_wait(target)


def is_wait(target: Any) -> bool:
    """Whether an operator waits for the one that its argument is a result of."""
    return _is_functional(target) and target._schema.name == f"{_NAMESPACE}::wait_tensor"


def _is_functional(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace == _NAMESPACE
