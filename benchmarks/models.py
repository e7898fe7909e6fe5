"""The four models of the suites: the demo's, and BERT, ViT and GPT-2 with random weights.

The last three come from `transformers`, with 4 layers, hidden size 256, 512 tokens (ViT:
529 patches), SDPA attention, no dropout, and a vocabulary of 8,192.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompile.demo.data import load_corpus
from deepcompile.demo.model import ModelConfig, Transformer

VOCABULARY = 8192
CONTEXT = 512
BATCH = 4
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class BenchmarkModel:
    """A module in training mode and the batch of each step, the same for every call."""

    name: str
    module: nn.Module
    batch: Callable[[int], Batch]


def build(name: str, seed: int = 0) -> BenchmarkModel:
    """The model `name` with the weights of `seed`. Raises KeyError for an unknown name."""
    builder = {"demo": _demo, "bert": _bert, "vit": _vit, "gpt2": _gpt2}[name]
    torch.manual_seed(seed)
    module, batch = builder()
    return BenchmarkModel(name, module.train(), batch)


def loss_of(module: Callable[..., Any], batch: Batch) -> Tensor:
    """The loss of one forward, whether the model returns it alone or in an output object."""
    output = module(**batch)
    return output if isinstance(output, Tensor) else output.loss


def _demo() -> tuple[nn.Module, Callable[[int], Batch]]:
    config = ModelConfig()
    corpus = load_corpus(config.vocabulary)

    def batch(step: int) -> Batch:
        tokens, targets = corpus.batch(step, seed=0, batch=8, context=config.context)
        return {"tokens": tokens, "targets": targets}

    return Transformer(config), batch


def _bert() -> tuple[nn.Module, Callable[[int], Batch]]:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, attn_implementation="sdpa", **SIZES
    )
    return BertForMaskedLM(config), _random_text


def _gpt2() -> tuple[nn.Module, Callable[[int], Batch]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=SIZES["hidden_size"],
        n_layer=SIZES["num_hidden_layers"],
        n_head=SIZES["num_attention_heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config), _random_text


def _vit() -> tuple[nn.Module, Callable[[int], Batch]]:
    from transformers import ViTConfig, ViTForImageClassification

    pixels = 23 * 16  # 23 x 23 patches and the class token: 530 tokens
    config = ViTConfig(
        image_size=pixels, patch_size=16, num_labels=1000, attn_implementation="sdpa", **SIZES
    )
    return ViTForImageClassification(config), functools.partial(_random_images, pixels)


def _random_text(step: int) -> Batch:
    """Tokens with a steep frequency distribution, so that there is something to learn."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.rand((BATCH, CONTEXT), generator=generator).pow(3).mul(VOCABULARY).long()
    return {"input_ids": tokens, "labels": tokens}


def _random_images(pixels: int, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn((BATCH, 3, pixels, pixels), generator=generator)
    labels = torch.randint(1000, (BATCH,), generator=generator)
    return {"pixel_values": images, "labels": labels}
