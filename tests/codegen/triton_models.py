"""Models that the Triton tests compile, as factories for `deepcompile compile`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

F = nn.functional


class Block(nn.Module):
    """A transformer block with both norms."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.LayerNorm(hidden)
        self.second = nn.RMSNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, hidden = x.shape
        heads = self.qkv(self.first(x)).view(batch, time, 3, self.heads, hidden // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, hidden))
        return x + F.dropout(self.down(F.gelu(self.up(self.second(x)))), 0.0)


class Transformer(nn.Module):
    """Tokens to the mean cross-entropy of the next ones, with a tied head."""

    def __init__(self, layers: int = 2, hidden: int = 16, heads: int = 2, words: int = 37) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.embedding.weight.T
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def transformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Eight layers in bf16."""
    model = Transformer(layers=8, hidden=256, heads=4, words=1000).to(torch.bfloat16)
    return model, (torch.zeros(4, 256, dtype=torch.int64),)


class Rows(nn.Module):
    """The four row operations, at several lengths."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(length) for length in lengths)
        self.root = nn.ModuleList(nn.RMSNorm(length) for length in lengths)

    def forward(self, *rows: Tensor) -> Tensor:
        total = torch.zeros(())
        for x, norm, root in zip(rows, self.norms, self.root, strict=True):
            total = total + (norm(x) * 2).sum() + root(x).sum() + F.softmax(x, -1).amax()
            total = total + F.cross_entropy(x, x.new_zeros(len(x), dtype=torch.int64))
        return total


def rows() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Rows that one tile holds, and longer ones, in bf16."""
    lengths = (1000, 8192, 16384, 50257)
    inputs = [torch.zeros(64, n, dtype=torch.bfloat16, requires_grad=True) for n in lengths]
    return Rows(lengths).to(torch.bfloat16), tuple(inputs)
