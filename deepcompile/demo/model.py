"""A small decoder-only transformer: RoPE attention, RMSNorm, SwiGLU, tied head, cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model. `hidden` must be divisible by `heads`, and the quotient by 2 (RoPE)."""

    vocabulary: int = 2048
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    feedforward: int = 704
    context: int = 256

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


def rotary_tables(context: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al. 2021), each `[context, 1, 1, head_size / 2]`."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    angles = torch.outer(torch.arange(context), frequencies)[:, None, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_size / 2) of `x[..., head_size]` by its angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_size = config.head_size
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, hidden = x.shape
        heads = self.qkv(x).view(batch, time, 3, self.heads, self.head_size)
        positioned, value = heads.split((2, 1), dim=2)
        query, key = rotate(positioned, cos, sin).unbind(2)
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.squeeze(2).transpose(1, 2),
            is_causal=True,
        )
        return self.out(attended.transpose(1, 2).reshape(batch, time, hidden))


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden, 2 * config.feedforward, bias=False)
        self.down = nn.Linear(config.feedforward, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.attention = Attention(config)
        self.feedforward_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.feedforward = SwiGLU(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feedforward(self.feedforward_norm(x))


class Transformer(nn.Module):
    """Tokens `[batch, time]` to logits, or to the mean cross-entropy where targets are given."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        cos, sin = rotary_tables(config.context, config.head_size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        if targets is None:
            return logits
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
