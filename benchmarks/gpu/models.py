"""Models like GPT-2, Llama, BERT and ViT in plain torch, with random weights and batches.

They have the shapes and the operators of the originals and none of their code; no dropout, so that
results can be compared. Each gives logits, and a loss where targets are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu.plan import GIB, Plan


@dataclass(frozen=True)
class Sizes:
    """Of one model; `batch` and `length` are those of a training step."""

    layers: int
    width: int
    heads: int
    key_heads: int
    inner: int
    words: int
    length: int
    batch: int


# BERT and ViT have 8 of their 12 layers, since compiling all would take the run's time.
SIZES = {
    "gpt2": Sizes(12, 768, 12, 12, 3072, 50304, 1024, 16),
    "llama": Sizes(8, 1536, 12, 4, 4096, 32000, 2048, 8),
    "bert": Sizes(8, 768, 12, 12, 3072, 30528, 512, 32),
    "vit": Sizes(8, 768, 12, 12, 3072, 1000, 14, 64),
}
TINY = Sizes(1, 16, 2, 1, 32, 64, 6, 2)
PATCH = 16
ROOM_A_SAMPLE = 2 * GIB  # what a sample of the batch may need in eager, weights included


class Attention(nn.Module):
    """Scaled dot products by `scaled_dot_product_attention`; fewer keys than queries are shared."""

    def __init__(self, sizes: Sizes, *, causal: bool, bias: bool, rotary: bool) -> None:
        super().__init__()
        self.heads, self.key_heads = sizes.heads, sizes.key_heads if rotary else sizes.heads
        self.head = sizes.width // sizes.heads
        self.causal = causal
        projected = (self.heads + 2 * self.key_heads) * self.head
        self.qkv = nn.Linear(sizes.width, projected, bias=bias)
        self.out = nn.Linear(sizes.width, sizes.width, bias=bias)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, -1, self.head).transpose(1, 2)
        query, key, value = parts.split((self.heads, self.key_heads, self.key_heads), dim=1)
        if tables is not None:
            query, key = (_rotate(part, *tables) for part in (query, key))
        if self.key_heads != self.heads:
            key, value = (self._shared(part) for part in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def _shared(self, part: Tensor) -> Tensor:
        batch, heads, length, head = part.shape
        times = self.heads // self.key_heads
        wide = part[:, :, None].expand(batch, heads, times, length, head)
        return wide.reshape(batch, heads * times, length, head)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class MLP(nn.Module):
    """Two layers and a GELU."""

    def __init__(self, sizes: Sizes, approximate: str) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.width, sizes.inner)
        self.down = nn.Linear(sizes.inner, sizes.width)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """Llama's feed-forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.up = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.down = nn.Linear(sizes.inner, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A transformer block; `after` puts the norms behind the sums, as BERT does."""

    def __init__(self, attention: Attention, mlp: nn.Module, norms: list[nn.Module], after: bool):
        super().__init__()
        self.attention, self.mlp = attention, mlp
        self.first, self.second = norms
        self.after = after

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if self.after:
            x = self.first(x + self.attention(x, tables))
            return self.second(x + self.mlp(x))
        x = x + self.attention(self.first(x), tables)
        return x + self.mlp(self.second(x))


class Text(nn.Module):
    """GPT-2 (`causal`), Llama (`rotary` too) or BERT: tokens [batch, length] to logits or loss."""

    def __init__(self, sizes: Sizes, *, causal: bool, rotary: bool) -> None:
        super().__init__()
        self.causal, self.rotary = causal, rotary
        self.words = nn.Embedding(sizes.words, sizes.width)
        if rotary:
            head = sizes.width // sizes.heads
            steps = torch.arange(0, head, 2).float() / head
            angles = torch.outer(torch.arange(sizes.length).float(), 10000.0**-steps).repeat(1, 2)
            self.register_buffer("cosine", angles.cos())
            self.register_buffer("sine", angles.sin())
        else:
            self.positions = nn.Embedding(sizes.length, sizes.width)
        norm = nn.RMSNorm if rotary else nn.LayerNorm
        self.blocks = nn.ModuleList(
            Block(
                Attention(sizes, causal=causal, bias=not rotary, rotary=rotary),
                SwiGLU(sizes) if rotary else MLP(sizes, "tanh" if causal else "none"),
                [norm(sizes.width, eps=1e-5) for _ in range(2)],
                after=not causal,
            )
            for _ in range(sizes.layers)
        )
        self.norm = norm(sizes.width, eps=1e-5)
        self.transform = None if causal else nn.Linear(sizes.width, sizes.width)
        self.head = nn.Linear(sizes.width, sizes.words, bias=False)
        if not rotary:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        x = self.words(tokens)
        tables = None
        if self.rotary:
            tables = self.cosine[:length], self.sine[:length]
        else:
            x = x + self.positions.weight[:length]
        if self.transform is not None:
            x = self.norm(x)
        for block in self.blocks:
            x = block(x, tables)
        x = self.norm(x) if self.transform is None else functional.gelu(self.transform(x))
        logits = self.head(x)
        if targets is None:
            return logits
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class Images(nn.Module):
    """ViT: images [batch, 3, size, size] to logits or loss."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, sizes.width, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.positions = nn.Parameter(torch.randn(1, sizes.length**2 + 1, sizes.width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(
                Attention(sizes, causal=False, bias=True, rotary=False),
                MLP(sizes, "none"),
                [nn.LayerNorm(sizes.width) for _ in range(2)],
                after=False,
            )
            for _ in range(sizes.layers)
        )
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.words)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)[:, 0])
        if targets is None:
            return logits
        return functional.cross_entropy(logits.float(), targets)


BUILDERS: dict[str, Callable[[Sizes], nn.Module]] = {
    "gpt2": lambda sizes: Text(sizes, causal=True, rotary=False),
    "llama": lambda sizes: Text(sizes, causal=True, rotary=True),
    "bert": lambda sizes: Text(sizes, causal=False, rotary=False),
    "vit": Images,
}


def sizes_of(name: str, plan: Plan) -> Sizes:
    """The sizes of a model, with a batch that fits onto the card."""
    if plan.smoke:
        return TINY
    sizes = SIZES[name]
    batch = max(1, min(sizes.batch, plan.memory // ROOM_A_SAMPLE))
    return Sizes(**{**vars(sizes), "batch": batch})


def build(name: str, plan: Plan) -> nn.Module:
    """The model on the device of the run, in bf16, with initial weights as GPT-2 draws them."""
    torch.manual_seed(0)
    with torch.device(plan.device):
        model = BUILDERS[name](sizes_of(name, plan))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.02)
    return model.to(torch.bfloat16)


def batch_of(name: str, plan: Plan, *, count: int, length: int | None = None) -> tuple[Tensor, ...]:
    """Inputs and targets of `count` samples; `length` in tokens, where it is not the model's."""
    sizes = sizes_of(name, plan)
    generator = torch.Generator(plan.device).manual_seed(1)
    if name == "vit":
        side = sizes.length * PATCH
        images = torch.randn(
            (count, 3, side, side), generator=generator, device=plan.device, dtype=torch.bfloat16
        )
        labels = torch.randint(sizes.words, (count,), generator=generator, device=plan.device)
        return images, labels
    shape = (count, min(length or sizes.length, sizes.length))
    tokens, targets = (
        torch.randint(sizes.words, shape, generator=generator, device=plan.device) for _ in range(2)
    )
    return tokens, targets
