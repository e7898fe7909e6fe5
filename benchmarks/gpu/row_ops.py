"""The functions of the suite `rows`: their inputs, and what their backward must touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HEAD = 128
DROPOUT = 0.1
EPSILON = 1e-5

Make = Callable[..., Tensor]
"""Random numbers of a shape, on the device and in the dtype of the run."""


@dataclass(frozen=True)
class RowOp:
    """A function of tensors; those of floats that `differentiated` names need gradients.

    Attributes:
        inputs: of rows, columns and a source of random tensors.
        large: how many of the inputs have rows x columns numbers.
        differentiated: numbers of the inputs that get gradients.
        read_back: numbers of the inputs whose bytes the backward needs, beside the upstream.
        written_back: the gradients that it must write: another one may be the upstream itself.
        liger: its name there and how its arguments follow from ours.
        reduces: whether a row is more than its elements, so that its length matters.
    """

    name: str
    function: Callable[..., Any]
    inputs: Callable[[int, int, Make], tuple[Tensor, ...]]
    differentiated: tuple[int, ...]
    read_back: tuple[int, ...]
    written_back: tuple[int, ...]
    large: int = 1
    liger: tuple[str, Callable[..., tuple[Any, ...]]] | None = None
    reduces: bool = True


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps=EPSILON)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, eps=EPSILON)


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=-1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets)  # as language models call it


def _rope(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    return (
        query * cosine + _rotated(query) * sine,
        key * cosine + _rotated(key) * sine,
    )


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _swiglu(gate: Tensor, value: Tensor) -> Tensor:
    return functional.silu(gate) * value


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x)


def _dropout_residual(x: Tensor, residual: Tensor) -> Tensor:
    return functional.dropout(x, DROPOUT) + residual


def _logits(rows: int, columns: int, make: Make) -> tuple[Tensor, ...]:
    logits = make(rows, columns)
    return logits, torch.randint(columns, (rows,), device=logits.device)


def _heads(rows: int, columns: int, make: Make) -> tuple[Tensor, ...]:
    """Query and key [1, heads, tokens, head] as projections lay them out, and the two tables."""
    head = min(HEAD, columns)
    pair = [make(1, rows, columns // head, head).transpose(1, 2) for _ in range(2)]
    positions = torch.arange(rows, device=pair[0].device).float()
    steps = torch.arange(0, head, 2, device=pair[0].device).float() / head
    angles = torch.outer(positions, 10000.0**-steps).repeat(1, 2)
    tables = [table.to(pair[0].dtype)[None] for table in (angles.cos(), angles.sin())]
    return *pair, *tables


OPS = (
    RowOp(
        "layer_norm", _layer_norm,
        lambda rows, columns, make: (make(rows, columns), make(columns), make(columns)),
        (0, 1, 2), (0, 1), (0, 1, 2),
        liger=("liger_layer_norm", lambda x, weight, bias: (x, weight, bias, EPSILON)),
    ),
    RowOp(
        "rms_norm", _rms_norm,
        lambda rows, columns, make: (make(rows, columns), make(columns)),
        (0, 1), (0, 1), (0, 1),
        liger=("liger_rms_norm", lambda x, weight: (x, weight, EPSILON, 0.0, "llama", False)),
    ),
    RowOp(
        "softmax", _softmax,
        lambda rows, columns, make: (make(rows, columns),),
        (0,), (0,), (0,),
        liger=("liger_softmax", lambda x: (x,)),
    ),
    RowOp(
        "cross_entropy", _cross_entropy, _logits, (0,), (0, 1), (0,),
        liger=("liger_cross_entropy", lambda logits, targets: (logits, targets)),
    ),
    RowOp(
        "rope", _rope, _heads, (0, 1), (2, 3), (0, 1), large=2, reduces=False,
        liger=("liger_rope", lambda query, key, cosine, sine: (query, key, cosine, sine)),
    ),
    RowOp(
        "swiglu", _swiglu,
        lambda rows, columns, make: (make(rows, columns), make(rows, columns)),
        (0, 1), (0, 1), (0, 1), large=2, reduces=False,
        liger=("liger_swiglu", lambda gate, value: (gate, value)),
    ),
    RowOp(
        "gelu", _gelu,
        lambda rows, columns, make: (make(rows, columns),),
        (0,), (0,), (0,), reduces=False,
    ),
    RowOp(
        "dropout_residual", _dropout_residual,
        lambda rows, columns, make: (make(rows, columns), make(rows, columns)),
        (0, 1), (), (0,), large=2, reduces=False,
    ),
)  # fmt: skip


def dropout_error(
    inputs: tuple[Tensor, ...], output: Tensor, gradient: Tensor, upstream: Tensor
) -> str | None:
    """What is wrong with one draw of dropout and its gradient, whose mask must be the same one.

    Whether a number was kept is read off the gradient, the reference is made with that mask.
    """
    x, residual = (tensor.float() for tensor in inputs)
    kept = (gradient != 0) | (upstream == 0)
    share = float(kept.float().mean())
    if abs(share - (1 - DROPOUT)) > 0.01 + 3 * kept.numel() ** -0.5:
        return f"{share:.4f} of the numbers were kept instead of {1 - DROPOUT}"
    scale = kept.float() / (1 - DROPOUT)
    pairs = (("output", output, x * scale + residual), ("gradient", gradient, upstream * scale))
    for name, got, expected in pairs:
        error, norm = float((got.float() - expected).norm()), float(expected.norm())
        if not error <= 0.01 * norm:
            return f"{name}: error {error:.3g} for a norm of {norm:.3g}"
    return None
