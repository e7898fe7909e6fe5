"""The names under which graph text calls functions, and the functions of these names."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch

_MODULES: dict[str, ModuleType] = {"operator": operator, "math": math, "torch": torch}
_NAME_OF_MODULE = {"_operator": "operator", "math": "math", "torch": "torch"}


@functools.cache
def function_name(target: Any) -> str:
    """The name of a function; `python.module.name` for those that have no way back."""
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target)
    module = _NAME_OF_MODULE.get(getattr(target, "__module__", ""))
    name = getattr(target, "__name__", "")
    if module is not None and getattr(_MODULES[module], name, None) is target:
        return f"{module}.{name}"
    return f"python.{getattr(target, '__module__', '?')}.{name or type(target).__name__}"


@functools.cache
def function_named(name: str) -> Callable[..., Any]:
    """The function whose name is `name`. Raises ValueError when there is none."""
    if name == "getitem":
        return operator.getitem
    first, *rest = name.split(".")
    if first in _MODULES and len(rest) == 1:
        found: Any = getattr(_MODULES[first], rest[0], None)
    elif first == "python":
        raise ValueError(f"the Python function {'.'.join(rest)} cannot be rebuilt from text")
    else:
        found = _dig(torch.ops, [first, *rest])
    if not callable(found):
        raise ValueError(f"unknown op {name!r}")
    return found  # type: ignore[no-any-return]


def _dig(root: Any, path: Iterable[str]) -> Any:
    for part in path:
        try:
            root = getattr(root, part)
        except (AttributeError, RuntimeError):
            return None
    return root
