"""Models at real sizes for `meta`: nothing of them is ever computed, only planned."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class DecoderSizes:
    """Of a Llama-like decoder; those of Llama-3 8B but for its vocabulary and depth."""

    layers: int = 2
    width: int = 4096
    heads: int = 32
    key_heads: int = 8
    inner: int = 14336
    vocabulary: int = 32000
    tied: bool = False
    experts: int = 0
    capacity: int = 0


class Attention(nn.Module):
    """Grouped queries, rotary positions, causal."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        width, self.dim = sizes.width, sizes.width // sizes.heads
        self.repeats = sizes.heads // sizes.key_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, sizes.key_heads * self.dim, bias=False)
        self.v = nn.Linear(width, sizes.key_heads * self.dim, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = (
            project(x).view(rows, length, -1, self.dim).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        y = F.scaled_dot_product_attention(q, self._all(k), self._all(v), is_causal=True)
        return self.o(y.transpose(1, 2).reshape(rows, length, width))

    def _all(self, x: Tensor) -> Tensor:
        """A head of keys or values for each head of queries."""
        rows, heads, length, dim = x.shape
        x = x[:, :, None].expand(rows, heads, self.repeats, length, dim)
        return x.reshape(rows, heads * self.repeats, length, dim)


def _turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.gate = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.up = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.down = nn.Linear(sizes.inner, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Each token goes to one expert, which takes so many of each row at most (GShard, top 1)."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.capacity = sizes.capacity
        self.router = nn.Linear(sizes.width, sizes.experts, bias=False)
        self.up = nn.Parameter(torch.empty(sizes.experts, sizes.width, sizes.inner))
        self.down = nn.Parameter(torch.empty(sizes.experts, sizes.inner, sizes.width))

    def forward(self, x: Tensor) -> Tensor:
        odds = torch.softmax(self.router(x), -1)  # row, token, expert
        best, expert = odds.max(-1)
        chosen = F.one_hot(expert, odds.shape[-1]).to(x.dtype)
        place = torch.cumsum(chosen, 1) * chosen - 1  # -1: not this expert's
        slots = torch.arange(self.capacity, device=x.device)
        sent = (place[..., None] == slots).to(x.dtype)  # row, token, expert, slot
        inside = torch.einsum("btec,btd->ebcd", sent, x)
        inside = F.relu(torch.einsum("ebcd,edf->ebcf", inside, self.up))
        inside = torch.einsum("ebcf,efd->ebcd", inside, self.down)
        return torch.einsum("btec,ebcd->btd", sent * best[..., None, None], inside)


class Block(nn.Module):
    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.mlp = Experts(sizes) if sizes.experts else Gated(sizes)
        self.before = nn.RMSNorm(sizes.width)
        self.between = nn.RMSNorm(sizes.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.before(x), cos, sin)
        return x + self.mlp(self.between(x))


class Decoder(nn.Module):
    """With rotary positions and the loss of the next token."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        if sizes.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(tokens)
        dim = self.sizes.width // self.sizes.heads
        rates = 1 / (10000 ** (torch.arange(0, dim, 2, device=x.device) / dim))
        angles = torch.outer(torch.arange(tokens.shape[1], device=x.device).float(), rates)
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def decoder_on_meta(
    sizes: DecoderSizes, rows: int = 1, length: int = 4096, dtype: torch.dtype = torch.bfloat16
) -> tuple[nn.Module, Batch]:
    """A decoder and its inputs, without memory."""
    with torch.device("meta"):
        model = Decoder(sizes).to(dtype)
        tokens = torch.zeros(rows, length, dtype=torch.long)
    return model, {"tokens": tokens, "labels": tokens.clone()}


class Chain(nn.Module):
    """Linear layers with ReLU between, widths alternating, and the mean square of what comes out.

    Args:
        width: of the input and of every second layer's output.
        inner: of the others.
        layers: how many.
    """

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        widths = [inner if number % 2 else width for number in range(layers + 1)]
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(F.relu(x) if number else x)
        return x.float().square().mean()
