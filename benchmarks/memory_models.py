"""Six models to place activation checkpoints in: plain torch, random weights, training mode.

| name   | full                                                                    | parameters |
|--------|-------------------------------------------------------------------------|------------|
| gpt16  | 16 layers of width 256, 4 heads, SwiGLU, 2 x 1024 tokens of 8192        | 17,334,784 |
| llama  | 8 layers of width 256, 8 query and 2 key heads, rotary, 2 x 512 tokens  |  9,834,752 |
| bert   | 6 layers of width 256, 4 heads, dropout 0.1, 4 x 512 tokens, 15% masked |  7,042,304 |
| vit    | 6 layers of width 256, 4 heads, 8 images of 3 x 224 x 224, patch 16     |  5,243,624 |
| unet   | 4 levels of 32 to 256 channels, 4 images of 3 x 128 x 128, 8 classes    |  1,928,648 |
| resnet | ResNet-18 for CIFAR: 64 to 512 channels, 32 images of 3 x 32 x 32       | 11,173,962 |

The size "small" has three or four layers of the same kinds, for tests on a CPU. Under
`torch.device("meta")` models are built without memory for weights or batch.

The full resnet has so many ReLUs that in single precision one or two of their inputs may round to
the other side of zero, which moves whole gradients by a thousandth or more, in eager as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.memory_modules import (
    GPT,
    PIXEL_CHANNELS,
    Bert,
    ImageSizes,
    Llama,
    ResNet,
    TextSizes,
    UNet,
    ViT,
)

Size = Literal["full", "small"]
Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class MemoryModel:
    """A module in training mode, the batch of a step and the function from both to the loss."""

    name: str
    module: nn.Module
    batch: Batch
    loss: Loss


SIZES: dict[str, dict[Size, TextSizes | ImageSizes]] = {
    "gpt16": {
        "full": TextSizes(16, 256, 4, 704, batch=2, tokens=1024, vocabulary=8192),
        "small": TextSizes(4, 32, 2, 88, batch=2, tokens=32, vocabulary=64),
    },
    "llama": {
        "full": TextSizes(8, 256, 8, 704, batch=2, tokens=512, vocabulary=8192, key_heads=2),
        "small": TextSizes(3, 32, 4, 88, batch=2, tokens=32, vocabulary=64, key_heads=2),
    },
    "bert": {
        "full": TextSizes(6, 256, 4, 1024, batch=4, tokens=512, vocabulary=8192),
        "small": TextSizes(3, 32, 2, 128, batch=2, tokens=32, vocabulary=64),
    },
    "vit": {
        "full": ImageSizes((256,) * 6, batch=8, pixels=224, classes=1000, heads=4, patch=16),
        "small": ImageSizes((32,) * 3, batch=2, pixels=32, classes=10, heads=2, patch=8),
    },
    "unet": {
        "full": ImageSizes((32, 64, 128, 256), batch=4, pixels=128, classes=8, groups=8),
        "small": ImageSizes((8, 16, 32), batch=2, pixels=16, classes=4, groups=4),
    },
    "resnet": {
        "full": ImageSizes((64, 128, 256, 512), batch=32, pixels=32, classes=10, blocks=2),
        "small": ImageSizes((8, 16, 32), batch=4, pixels=16, classes=10),
    },
}
"""The extents of each model by name and size."""

NAMES = tuple(SIZES)

_MODULES: dict[str, Callable[..., nn.Module]] = {
    "gpt16": GPT,
    "llama": Llama,
    "bert": Bert,
    "vit": ViT,
    "unet": UNet,
    "resnet": ResNet,
}


def build(name: str, size: Size = "full", seed: int = 0) -> MemoryModel:
    """The model `name` with the weights and batch of `seed`. Raises KeyError for other names."""
    sizes = SIZES[name][size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _MODULES[name](sizes).train()
        if isinstance(sizes, TextSizes):
            module.apply(_initialise)
            batch = _masked_tokens(sizes) if name == "bert" else _next_tokens(sizes)
            return MemoryModel(name, module, batch, token_loss)
        batch = _images(sizes, per_pixel=name == "unet")
        return MemoryModel(name, module, batch, class_loss)


def token_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy over all tokens whose target is not -100."""
    logits = module(batch["inputs"])
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def class_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy over images, or over pixels where the module classifies each."""
    return F.cross_entropy(module(batch["inputs"]), batch["targets"])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def _next_tokens(sizes: TextSizes) -> Batch:
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.tokens + 1))
    return {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


def _masked_tokens(sizes: TextSizes) -> Batch:
    tokens = torch.randint(1, sizes.vocabulary, (sizes.batch, sizes.tokens))
    masked = torch.rand(tokens.shape) < 0.15
    return {"inputs": tokens.masked_fill(masked, 0), "targets": tokens.masked_fill(~masked, -100)}


def _images(sizes: ImageSizes, per_pixel: bool) -> Batch:
    images = torch.randn(sizes.batch, PIXEL_CHANNELS, sizes.pixels, sizes.pixels)
    shape = (sizes.batch, sizes.pixels, sizes.pixels) if per_pixel else (sizes.batch,)
    return {"inputs": images, "targets": torch.randint(sizes.classes, shape)}
