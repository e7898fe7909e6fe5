"""Running a model once and leaving no trace of it in the model, its inputs or random states."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def original_of(model: Callable[..., Any]) -> Callable[..., Any]:
    """What was given to `torch.compile`, where `model` is what it returned."""
    if isinstance(model, torch._dynamo.OptimizedModule):
        return model._orig_mod
    return getattr(model, "_torchdynamo_orig_callable", model)


def copy_of(value: Any) -> Any:
    """`value` with each tensor replaced by a copy that is a leaf; equal tensors by equal copies."""
    copies: dict[Tensor, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if tensor not in copies:
            made = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            copies[tensor] = made
        return copies[tensor]

    return pytree.tree_map_only(Tensor, copy, value)


def run_once(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Forward, and backward from the sum of the outputs where one needs a gradient.

    Gradients are returned to nobody instead of being added to `.grad`.
    """
    outputs = [t for t in tensors_in(model(*args, **kwargs)) if t.requires_grad]
    leaves = leaves_of(outputs)
    if leaves:
        sums = [t.abs().sum() if t.is_complex() else t.sum() for t in outputs]
        torch.autograd.grad(sums, leaves, allow_unused=True)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested containers and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_in(item)]
    if isinstance(value, list | tuple):
        return [t for item in value for t in tensors_in(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return [t for f in fields(value) for t in tensors_in(getattr(value, f.name))]
    return []


def leaves_of(outputs: list[Tensor]) -> list[Tensor]:
    """The tensors whose `.grad` a backward from `outputs` would add to."""
    found = {output: None for output in outputs if output.is_leaf}
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[variable] = None
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return list(found)


@dataclass
class _ModuleState:
    """Attributes of one module; containers that modules keep are copied one level deep."""

    module: nn.Module
    attributes: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleState:
        kept = {
            name: value.copy() if type(value) in (dict, list, set) else value
            for name, value in vars(module).items()
        }
        return cls(module, kept)

    def restore(self) -> None:
        now = vars(self.module)
        for name in now.keys() - self.attributes.keys():
            del now[name]
        for name, value in self.attributes.items():
            held = now.get(name)
            if type(value) is dict and isinstance(held, dict):
                held.clear()  # somebody may hold this very container
                held.update(value)
            else:
                now[name] = value


@contextmanager
def undisturbed(model: Callable[..., Any]) -> Iterator[None]:
    """After the block, modules that `model` is or refers to and random states are as before it.

    A function's modules are found in its closure, its globals and its `self`.
    """
    modules = list(dict.fromkeys(m for root in _roots(model) for m in root.modules()))
    states = [_ModuleState.of(module) for module in modules]
    held = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values())]
    values = [(t, t.detach().clone()) for t in dict.fromkeys(held) if t is not None]
    numbers = random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(numbers)
        for state in states:
            state.restore()
        with torch.no_grad():
            # By value: some ops write without a new version, as batch norm into its averages.
            for tensor, value in values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _roots(model: Callable[..., Any]) -> list[nn.Module]:
    if isinstance(model, nn.Module):
        return [model]
    found = [getattr(model, "__self__", None)]
    function = inspect.unwrap(getattr(model, "__func__", model))
    if inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        found += [*names.nonlocals.values(), *names.globals.values()]
    return [original_of(item) for item in found if isinstance(item, nn.Module)]  # type: ignore[misc]
