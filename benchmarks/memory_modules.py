"""The networks of `benchmarks.memory_models`, in plain torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

DROPOUT = 0.1
PIXEL_CHANNELS = 3


@dataclass(frozen=True)
class TextSizes:
    """Extents of a model of tokens; `hidden` is the inner width of its MLPs."""

    layers: int
    width: int
    heads: int
    hidden: int
    batch: int
    tokens: int
    vocabulary: int
    key_heads: int = 0


@dataclass(frozen=True)
class ImageSizes:
    """Extents of a model of square images; `widths` has the channels of each level or layer."""

    widths: tuple[int, ...]
    batch: int
    pixels: int
    classes: int
    blocks: int = 1
    heads: int = 1
    patch: int = 1
    groups: int = 1


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class FusedAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values, as in GPT-2 and ViT."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            _split_heads(part, self.heads) for part in self.project_in(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.project_out(_merge_heads(mixed))


class SwiGLU(nn.Module):
    """The gated MLP of Llama."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PreNormBlock(nn.Module):
    """A layer that normalises what attention and MLP read."""

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder with learned positions, SwiGLU and an untied head."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.tokens, sizes.width)
        self.layers = nn.Sequential(
            *(
                PreNormBlock(
                    sizes.width,
                    FusedAttention(sizes.width, sizes.heads, causal=True),
                    SwiGLU(sizes.width, sizes.hidden),
                )
                for _ in range(sizes.layers)
            )
        )
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        return self.head(self.norm(self.layers(x)))


class GroupedAttention(nn.Module):
    """Causal attention with rotary positions, in which several query heads share a key head."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.heads, self.key_heads = sizes.heads, sizes.key_heads
        key_width = sizes.width // sizes.heads * sizes.key_heads
        self.query = nn.Linear(sizes.width, sizes.width, bias=False)
        self.key = nn.Linear(sizes.width, key_width, bias=False)
        self.value = nn.Linear(sizes.width, key_width, bias=False)
        self.project_out = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query = _rotate(_split_heads(self.query(x), self.heads), cos, sin)
        key = _rotate(_split_heads(self.key(x), self.key_heads), cos, sin)
        value = _split_heads(self.value(x), self.key_heads)
        repeats = self.heads // self.key_heads
        mixed = F.scaled_dot_product_attention(
            query, _repeat_heads(key, repeats), _repeat_heads(value, repeats), is_causal=True
        )
        return self.project_out(_merge_heads(mixed))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _repeat_heads(x: Tensor, repeats: int) -> Tensor:
    return x.unsqueeze(2).expand(-1, -1, repeats, -1, -1).flatten(1, 2)


class LlamaBlock(nn.Module):
    """A layer of `Llama`: RMSNorm before grouped attention and before SwiGLU."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(sizes.width), nn.RMSNorm(sizes.width)
        self.attention = GroupedAttention(sizes)
        self.mlp = SwiGLU(sizes.width, sizes.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """A decoder whose rotary tables are computed once a step and read by all layers."""

    frequencies: Tensor

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        head = sizes.width // sizes.heads
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(LlamaBlock(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        frequencies = 10000.0 ** (-torch.arange(0, head, 2) / head)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        angles = torch.outer(positions, self.frequencies)
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


class BertBlock(nn.Module):
    """A layer that normalises after each sum, with dropout on what attention and MLP return."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)
        self.project_out = nn.Linear(sizes.width, sizes.width)
        self.up = nn.Linear(sizes.width, sizes.hidden)
        self.down = nn.Linear(sizes.hidden, sizes.width)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            _split_heads(project(x), self.heads) for project in (self.query, self.key, self.value)
        )
        mixed = _merge_heads(F.scaled_dot_product_attention(query, key, value))
        x = self.attention_norm(x + self.dropout(self.project_out(mixed)))
        return self.mlp_norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Bert(nn.Module):
    """An encoder that predicts masked tokens; its head shares the embedding's weight."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.tokens, sizes.width)
        self.kinds = nn.Embedding(2, sizes.width)
        self.norm = nn.LayerNorm(sizes.width)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.Sequential(*(BertBlock(sizes) for _ in range(sizes.layers)))
        self.transform = nn.Linear(sizes.width, sizes.width)
        self.transform_norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.kinds(torch.zeros_like(tokens)) + self.positions(positions)
        x = self.layers(self.dropout(self.norm(x)))
        return self.head(self.transform_norm(F.gelu(self.transform(x))))


class ViT(nn.Module):
    """Patches by convolution, a class token and pre-norm layers with GELU."""

    def __init__(self, sizes: ImageSizes) -> None:
        super().__init__()
        width = sizes.widths[0]
        self.patches = nn.Conv2d(PIXEL_CHANNELS, width, sizes.patch, stride=sizes.patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        count = (sizes.pixels // sizes.patch) ** 2 + 1
        self.positions = nn.Parameter(torch.randn(1, count, width) * 0.02)
        self.layers = nn.Sequential(
            *(
                PreNormBlock(
                    width,
                    FusedAttention(width, sizes.heads, causal=False),
                    nn.Sequential(
                        nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
                    ),
                )
                for width in sizes.widths
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def _double_convolution(channels: int, width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GroupNorm(groups, width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(groups, width),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """An encoder by max-pooling and a decoder by transposed convolution, joined at each level."""

    def __init__(self, sizes: ImageSizes) -> None:
        super().__init__()
        widths = sizes.widths
        self.down = nn.ModuleList(
            _double_convolution(before, width, sizes.groups)
            for before, width in zip((PIXEL_CHANNELS, *widths), widths, strict=False)
        )
        pairs = [(below, width) for width, below in itertools.pairwise(widths)][::-1]
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(below, width, 2, stride=2) for below, width in pairs
        )
        self.up = nn.ModuleList(
            _double_convolution(2 * width, width, sizes.groups) for _, width in pairs
        )
        self.head = nn.Conv2d(widths[0], sizes.classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, skips = self.down[0](images), []
        for level in self.down[1:]:
            skips.append(x)
            x = level(F.max_pool2d(x, 2))
        for widen, level in zip(self.widen, self.up, strict=True):
            x = level(torch.cat((skips.pop(), widen(x)), 1))
        return self.head(x)


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm, and a 1 x 1 one on the way around where shapes change."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.around = nn.Sequential()
        if stride != 1 or channels != width:
            shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.around = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.around(x))


class ResNet(nn.Module):
    """ResNet for small images: no pooling in the stem; training moves the running statistics."""

    def __init__(self, sizes: ImageSizes) -> None:
        super().__init__()
        channels = sizes.widths[0]
        self.stem = nn.Conv2d(PIXEL_CHANNELS, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        layers = []
        for level, width in enumerate(sizes.widths):
            for block in range(sizes.blocks):
                stride = 2 if level > 0 and block == 0 else 1
                layers.append(ResidualBlock(channels, width, stride))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(F.relu(self.stem_norm(self.stem(images))))
        return self.head(x.mean((2, 3)))
