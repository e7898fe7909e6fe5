"""All that a call of a model does, by name: outputs, gradients, what it wrote into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompile.explanation.undisturbed import leaves_of, tensors_in


@dataclass(frozen=True)
class Observed:
    """Tensors by name, copied; `written` has buffers and inputs that the call wrote into."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    written: dict[str, Tensor]


def observe(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    train: bool | None,
    model: Callable[..., Any],
) -> Observed:
    """Call `function` once, and backward from the sum of its outputs.

    Args:
        args: its inputs, which it may write into.
        train: whether gradients are computed; None for: where an output needs one.
        model: a module or function, whose parameters and buffers are told by name.
    """
    buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    watched = {f"buffer {name}": tensor for name, tensor in buffers.items()}
    watched |= {f"input {n}": tensor for n, tensor in enumerate(tensors_in(args))}
    versions = {name: tensor._version for name, tensor in watched.items()}
    with torch.set_grad_enabled(train is not False):
        outputs = tensors_in(function(*args))
        wanted = [tensor for tensor in outputs if tensor.requires_grad]
        gradients = _gradients(wanted, args, model)
    written = {
        name: tensor.detach().clone()
        for name, tensor in watched.items()
        if tensor._version != versions[name]
    }
    return Observed(
        {f"output {n}": tensor.detach().clone() for n, tensor in enumerate(outputs)},
        gradients,
        written,
    )


def _gradients(
    outputs: list[Tensor], args: tuple[Any, ...], model: Callable[..., Any]
) -> dict[str, Tensor]:
    leaves = leaves_of(outputs)
    if not leaves:
        return {}
    sums = [t.abs().sum() if t.is_complex() else t.sum() for t in outputs]
    names = {id(tensor): f"input {n}" for n, tensor in enumerate(tensors_in(args))}
    if isinstance(model, nn.Module):
        names |= {id(tensor): name for name, tensor in model.named_parameters()}
    made = torch.autograd.grad(sums, leaves, allow_unused=True)
    return {
        f"gradient of {names.get(id(leaf), f'leaf {number}')}": gradient.detach()
        for number, (leaf, gradient) in enumerate(zip(leaves, made, strict=True))
        if gradient is not None
    }
