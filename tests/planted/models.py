"""Small models, each with what one of the planted bugs bites on, among much else."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Case = tuple[nn.Module, tuple[Tensor, ...]]
WIDTH = 32


class Block(nn.Module):
    """A transformer block whose scores are scaled by a half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.first(x)).view(batch, length, 3, 4, width // 4)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = torch.softmax((q @ k.transpose(-1, -2)) * 0.5, -1)
        x = x + self.mix((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Mlp(nn.Module):
    """Layers with tanh; the last hidden layer is rounded to whole numbers."""

    def __init__(self, rounded: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(self.norm(x))) + x
        if self.rounded:
            x = (x * 3).to(torch.int32).to(torch.float32) + x
        return x.square().mean(-1)


class Conv(nn.Module):
    """Convolutions; rows are pooled by their largest value, which is below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(self.norm(conv(x)))
        return torch.amax(-x - 1.0, dim=-1).mean(-1)


class Counting(nn.Module):
    """Returns what a buffer was before it is updated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = F.silu(layer(x))
        before = self.mean.clone()
        self.mean.add_(x.detach().mean(0) + 1.0)
        return x * 2.0, before


def block() -> Case:
    return Block(), (torch.randn(2, 16, WIDTH),)


def block_of_24() -> Case:
    return Block().eval(), (torch.randn(2, 24, WIDTH),)


def mlp() -> Case:
    return Mlp(), (torch.randn(64, WIDTH),)


def rounding_mlp() -> Case:
    return Mlp(rounded=True).eval(), (torch.randn(64, WIDTH),)


def conv() -> Case:
    return Conv().eval(), (torch.randn(2, 3, 16, 16),)


def counting() -> Case:
    return Counting(), (torch.randn(8, WIDTH),)


def tiny() -> Case:
    return nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)).eval(), (torch.randn(2, 4),)
