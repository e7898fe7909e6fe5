"""Small models for plans on a mesh that are run on simulated ranks: seven families, 25 decoders.

All dimensions divide by 4, and by 2 where a rank shares what is left with others; numbers of heads
of keys are 2, so that four ranks are more than there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Batch = Mapping[str, Tensor]

VOCABULARY, LENGTH = 128, 16


@dataclass(frozen=True)
class Subject:
    """A model for training.

    Attributes:
        name: for messages.
        build: the model; calling it with a batch gives the loss or what has a `loss`.
        batch: inputs by name with so many rows.
        random: whether it draws random numbers, which eager does in another way.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    random: bool = False


class ConvNet(nn.Module):
    """Two stages of convolutions with normalised groups of channels, one of them depthwise."""

    def __init__(self, width: int = 16, classes: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.GroupNorm(4, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.widen = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.second = nn.GroupNorm(4, 2 * width)
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(images)))
        x = F.max_pool2d(x + self.depthwise(x), 2)
        x = self.narrow(F.silu(self.second(self.widen(x))))
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


def _images(rows: int) -> Batch:
    return {"images": torch.randn(rows, 3, 16, 16), "labels": torch.randint(0, 8, (rows,))}


def _pixels(rows: int) -> Batch:
    return {"pixel_values": torch.randn(rows, 3, 32, 32), "labels": torch.randint(0, 8, (rows,))}


def text(rows: int) -> Batch:
    """For causal language models, which shift labels themselves."""
    ids = torch.randint(3, VOCABULARY, (rows, LENGTH))
    return {"input_ids": ids, "labels": ids.clone()}


def _masked_text(rows: int) -> Batch:
    return {
        "input_ids": torch.randint(3, VOCABULARY, (rows, LENGTH)),
        "labels": torch.randint(3, VOCABULARY, (rows, LENGTH)),
    }


# -- transformers ----------------------------------------------------------------------------------

_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
}  # fmt: skip
_DECODER = _SIZES | {"num_key_value_heads": 2, "pad_token_id": 0}
_GPT: dict[str, Any] = {
    "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_HEAD = {"head_dim": 16}
_ALIBI: dict[str, Any] = {
    "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY
}  # fmt: skip

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _DECODER),
    "gpt2": ("GPT2Config", _GPT),
    "gpt_neox": ("GPTNeoXConfig", _SIZES),
    "mistral": ("MistralConfig", _DECODER),
    "qwen2": ("Qwen2Config", _DECODER),
    "qwen3": ("Qwen3Config", _DECODER | _HEAD),
    "gemma": ("GemmaConfig", _DECODER | _HEAD),
    "gemma2": ("Gemma2Config", _DECODER | _HEAD),
    "phi": ("PhiConfig", _SIZES),
    "phi3": ("Phi3Config", _DECODER),
    "falcon": ("FalconConfig", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": VOCABULARY, "new_decoder_architecture": False, "multi_query": True}),
    "bloom": ("BloomConfig", _ALIBI),
    "opt": ("OPTConfig", {
        "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": VOCABULARY, "word_embed_proj_dim": 64, "max_position_embeddings": 64}),
    "starcoder2": ("Starcoder2Config", _DECODER),
    "stablelm": ("StableLmConfig", _DECODER),
    "olmo2": ("Olmo2Config", _DECODER),
    "cohere": ("CohereConfig", _DECODER),
    "granite": ("GraniteConfig", _DECODER),
    "glm": ("GlmConfig", _DECODER | _HEAD),
    "mpt": ("MptConfig", {
        "d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY}),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT),
    "codegen": ("CodeGenConfig", _GPT | {"rotary_dim": 8}),
    "gptj": ("GPTJConfig", _GPT | {"rotary_dim": 8}),
    "mixtral": ("MixtralConfig", _DECODER | {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", _DECODER | {
        "num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
        "num_experts_per_tok": 2}),
}  # fmt: skip
"""Configurations of causal language models of `transformers`, by a short name."""

_ENCODER = _SIZES | {"max_position_embeddings": 32, "pad_token_id": 0}
_VISION: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8, "num_labels": 8,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def without_dropout(config: Any) -> None:
    """Set every probability of dropout in a configuration to nothing."""
    for name, value in vars(config).items():
        if re.search("drop", name) and isinstance(value, float):
            setattr(config, name, 0.0)


def from_transformers(
    config: str, model: str, sizes: Mapping[str, Any], *, dropout: float | None = None
) -> nn.Module:
    """With random weights; `transformers` is imported here, since not everybody has it."""
    import transformers

    made = getattr(transformers, config)(**sizes)
    if dropout is None:
        without_dropout(made)
    made.use_cache = False
    built = getattr(transformers, model)
    module: nn.Module = built.from_config(made) if model.startswith("Auto") else built(made)
    if model == "AutoModelForCausalLM":
        module.loss_type = "ForCausalLM"  # type: ignore[assignment]  # some warn that it is missing
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = dropout or 0.0
    return module


def decoder(name: str, **changes: Any) -> nn.Module:
    """One of `DECODERS`."""
    config, sizes = DECODERS[name]
    return from_transformers(config, "AutoModelForCausalLM", sizes | changes)


def decoder_subject(name: str) -> Subject:
    return Subject(name, lambda: decoder(name), text)


FAMILIES: tuple[Subject, ...] = (
    decoder_subject("llama"),
    decoder_subject("gpt2"),
    Subject(
        "bert",
        lambda: from_transformers("BertConfig", "BertForMaskedLM", _ENCODER, dropout=0.1),
        _masked_text,
        random=True,
    ),
    Subject(
        "t5",
        lambda: from_transformers("T5Config", "T5ForConditionalGeneration", _T5),
        _masked_text,
    ),
    Subject(
        "vit",
        lambda: from_transformers("ViTConfig", "ViTForImageClassification", _VISION),
        _pixels,
    ),
    decoder_subject("mixtral"),
    Subject("convnet", ConvNet, _images),
)
"""One model of each kind."""
