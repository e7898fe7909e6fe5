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
    """Call `function` once, and backward from a weighted sum of its outputs.

    The weights are the same for every call; a plain sum would hide much: that of a softmax has no
    gradient at all.

    Args:
        args: its inputs, which it may write into.
        train: whether gradients are computed; None for: where an output needs one.
        model: a module or function, whose parameters and buffers are told by name.
    """
    buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    watched = {f"buffer {name}": tensor for name, tensor in buffers.items()}
    watched |= {f"input {n}": tensor for n, tensor in enumerate(tensors_in(args))}
    before = {name: tensor.detach().clone() for name, tensor in watched.items()}
    with torch.set_grad_enabled(train is not False):
        outputs = tensors_in(function(*args))
        wanted = [tensor for tensor in outputs if tensor.requires_grad]
        gradients = _gradients(wanted, args, model)
    written = {
        name: tensor.detach().clone()
        for name, tensor in watched.items()
        if not torch.equal(tensor, before[name])
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
    weights = [_weights(tensor, number) for number, tensor in enumerate(outputs)]
    names = {id(tensor): f"input {n}" for n, tensor in enumerate(tensors_in(args))}
    if isinstance(model, nn.Module):
        names |= {id(tensor): name for name, tensor in model.named_parameters()}
    made = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    return {
        f"gradient of {names.get(id(leaf), f'leaf {number}')}": gradient.detach()
        for number, (leaf, gradient) in enumerate(zip(leaves, made, strict=True))
        if gradient is not None
    }


def _weights(output: Tensor, seed: int) -> Tensor:
    """What the gradient of an output is taken to be; of a loss it is 1."""
    if output.dim() == 0:
        return torch.ones_like(output)
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex64 if output.is_complex() else torch.float32
    made = torch.randn(output.shape, generator=generator, dtype=wide)
    return made.to(device=output.device, dtype=output.dtype)
