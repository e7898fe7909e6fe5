"""Architectures of `transformers`, tiny and with random weights: one training step equals eager's.

A table of graphs, kernels, calls of ATen and fallbacks of each is printed at the end.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompile.backend import Recording, recording

transformers = pytest.importorskip("transformers")

VOCABULARY, BATCH, LENGTH = 61, 2, 12
TOLERANCE = 1e-4
EXPECTED_EXTERN = re.compile(
    r"""(aten\.)?_?(
        mm | addmm | bmm | baddbmm | convolution | convolution_backward
      | scaled_dot_product_\w+ | grouped_mm
      | embedding_dense_backward
      | index | index_put | index_select | index_add | gather | scatter | scatter_add
      | topk | sort | nonzero
    )(\.\w+)?""",
    re.VERBOSE,
)

Batch = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model with its sizes and inputs; slow ones run with `make test-slow` only."""

    name: str
    config: str
    model: str
    sizes: dict[str, Any]
    batch: Callable[[], Batch]
    slow: bool = False

    def build(self) -> nn.Module:
        config = getattr(transformers, self.config)(**self.sizes)
        _no_dropout(config)
        module = getattr(transformers, self.model)(config).train()
        for child in module.modules():
            if isinstance(child, nn.Dropout):
                child.p = 0.0
        return module


def _no_dropout(config: Any) -> None:
    """Eager and compiled code draw other random numbers."""
    for name, value in vars(config).items():
        if re.search("drop", name) and isinstance(value, float):
            setattr(config, name, 0.0)
        elif isinstance(value, transformers.PretrainedConfig):
            _no_dropout(value)


def tokens(low: int = 3) -> Tensor:
    return torch.randint(low, VOCABULARY, (BATCH, LENGTH))


def text() -> Batch:
    ids = tokens()
    return {"input_ids": ids, "labels": ids.clone(), "use_cache": False}


def masked_text() -> Batch:
    """Text whose second row is padded and whose labels are partly ignored."""
    ids, mask = tokens(), torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, -4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def pairs() -> Batch:
    return {"input_ids": tokens(), "labels": tokens(), "use_cache": False}


def images() -> Batch:
    return {"pixel_values": torch.randn(BATCH, 3, 32, 32), "labels": torch.tensor([1, 3])}


def speech() -> Batch:
    return {"input_features": torch.randn(BATCH, 8, 40), "labels": tokens(), "use_cache": False}


def images_and_text() -> Batch:
    return {
        "pixel_values": torch.randn(BATCH, 3, 32, 32),
        "input_ids": tokens(),
        "return_loss": True,
    }


DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
    "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

CASES = [
    Case("gpt2", "GPT2Config", "GPT2LMHeadModel", {
        "vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "bos_token_id": 1, "eos_token_id": 2}, text, slow=True),
    Case("llama", "LlamaConfig", "LlamaForCausalLM", DECODER, text),
    Case("qwen3", "Qwen3Config", "Qwen3ForCausalLM", DECODER | {"head_dim": 8}, text, slow=True),
    Case("gemma2", "Gemma2Config", "Gemma2ForCausalLM", DECODER | {
        "head_dim": 8, "sliding_window": 4}, text, slow=True),
    Case("mixtral", "MixtralConfig", "MixtralForCausalLM", DECODER | {
        "num_local_experts": 4, "num_experts_per_tok": 2}, text, slow=True),
    Case("opt", "OPTConfig", "OPTForCausalLM", DECODER | {
        "ffn_dim": 48, "word_embed_proj_dim": 32}, text, slow=True),
    Case("bert", "BertConfig", "BertForMaskedLM", ENCODER, masked_text),
    Case("roberta", "RobertaConfig", "RobertaForMaskedLM", ENCODER, masked_text, slow=True),
    Case("distilbert", "DistilBertConfig", "DistilBertForMaskedLM", {
        "vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 32, "pad_token_id": 0}, masked_text, slow=True),
    Case("t5", "T5Config", "T5ForConditionalGeneration", T5, pairs, slow=True),
    Case("vit", "ViTConfig", "ViTForImageClassification", VISION | {"num_labels": 5}, images),
    Case("whisper", "WhisperConfig", "WhisperForConditionalGeneration", BART | {
        "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32}, speech,
         slow=True),
    Case("clip", "CLIPConfig", "CLIPModel", {
        "text_config": ENCODER | {"eos_token_id": 2, "bos_token_id": 1, "projection_dim": 16},
        "vision_config": VISION | {"projection_dim": 16}, "projection_dim": 16}, images_and_text,
         slow=True),
    Case("bart", "BartConfig", "BartForConditionalGeneration", BART | {
        "max_position_embeddings": 32}, pairs, slow=True),
    Case("mt5", "MT5Config", "MT5ForConditionalGeneration", T5, pairs, slow=True),
    Case("qwen2-moe", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", DECODER | EXPERTS | {
        "num_experts": 4, "shared_expert_intermediate_size": 32}, text, slow=True),
    Case("mamba", "MambaConfig", "MambaForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, text, slow=True),
    Case("gpt-neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", DECODER, text, slow=True),
    Case("phi3", "Phi3Config", "Phi3ForCausalLM", DECODER, text, slow=True),
    Case("gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM", DECODER | {
        "head_dim": 8, "sliding_window": 4}, text, slow=True),
    Case("olmo2", "Olmo2Config", "Olmo2ForCausalLM", DECODER, text, slow=True),
    Case("falcon", "FalconConfig", "FalconForCausalLM", {
        key: DECODER[key] for key in DECODER if key not in ("intermediate_size",
                                                            "num_key_value_heads")},
        text, slow=True),
    Case("bloom", "BloomConfig", "BloomForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, text, slow=True),
    Case("albert", "AlbertConfig", "AlbertForMaskedLM", ENCODER | {
        "embedding_size": 16}, masked_text, slow=True),
    Case("electra", "ElectraConfig", "ElectraForMaskedLM", ENCODER | {
        "embedding_size": 16}, masked_text, slow=True),
    Case("deberta-v2", "DebertaV2Config", "DebertaV2ForMaskedLM", ENCODER | {
        "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
        masked_text, slow=True),
    Case("deit", "DeiTConfig", "DeiTForImageClassification", VISION | {"num_labels": 5}, images,
         slow=True),
    Case("swin", "SwinConfig", "SwinForImageClassification", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
        "window_size": 4, "num_labels": 5, "drop_path_rate": 0.0}, images, slow=True),
    Case("resnet", "ResNetConfig", "ResNetForImageClassification", {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
        "num_labels": 5}, images, slow=True),
    Case("convnext", "ConvNextConfig", "ConvNextForImageClassification", {
        "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 5}, images,
        slow=True),
]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Loss and gradients by name of one training step."""

    loss: Tensor
    gradients: dict[str, Tensor]


def train_step(module: nn.Module, batch: Batch, call: Callable[..., Any]) -> Step:
    loss = call(**batch).loss
    loss.backward()
    named = module.named_parameters()
    return Step(loss.detach(), {n: p.grad for n, p in named if p.grad is not None})


def in_double(module: nn.Module, batch: Batch) -> Step:
    exact = copy.deepcopy(module).double()
    wide = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in batch.items()
    }
    return train_step(exact, wide, exact)


def wrong(mine: Step, eager: Step, exact: Callable[[], Step]) -> list[str]:
    """The gradients (and loss) that are neither eager's nor about as exact as eager's."""
    if mine.gradients.keys() != eager.gradients.keys():
        return sorted(mine.gradients.keys() ^ eager.gradients.keys())
    whole = _norm(*eager.gradients.values())
    found = {"loss": (mine.loss, eager.loss, eager.loss.abs().item())}
    found |= {n: (g, eager.gradients[n], whole) for n, g in mine.gradients.items()}
    suspects = [
        name
        for name, (got, want, scale) in found.items()
        if not _norm(got - want) <= TOLERANCE * (_norm(want) + TOLERANCE * scale)
    ]
    if not suspects:
        return []
    reference = exact()
    truth = {"loss": reference.loss, **reference.gradients}
    return [
        f"{name}: off by {_norm(found[name][0] - truth[name]):.2e}, eager by "
        f"{_norm(found[name][1] - truth[name]):.2e}, of {_norm(truth[name]):.2e}"
        for name in suspects
        if not _norm(found[name][0] - truth[name]) <= 2 * _norm(found[name][1] - truth[name])
    ]


def _norm(*tensors: Tensor) -> float:
    return sum(t.double().square().sum().item() for t in tensors) ** 0.5


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    plugins = request.config.pluginmanager
    reporter, capture = (plugins.getplugin(n) for n in ("terminalreporter", "capturemanager"))
    if reporter is None or capture is None:
        return
    with capture.global_and_fixture_disabled():
        for line in ["", *lines]:
            reporter.write_line(line)


def summary(name: str, record: Recording) -> str:
    events = Counter(event for event, _ in record.events)
    calls = Counter(op for graph in record.graphs for op, _ in graph.externs)
    other = {op: n for op, n in calls.items() if not EXPECTED_EXTERN.fullmatch(op)}
    kernels = sum(len(graph.kernels) for graph in record.graphs)
    return (
        f"{name:12} graphs {len(record.graphs)}, kernels {kernels}, ATen {calls.total()}, "
        f"fallbacks {events['fallback']}, graph breaks {events['graph-break']}"
        + (f", other ops {other}" if other else "")
    )


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
        for case in CASES
    ],
)
def test_one_training_step_equals_eager(case: Case, table: list[str]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, batch = case.build(), case.batch()
    twin, pristine = copy.deepcopy(module), copy.deepcopy(module)
    eager = train_step(module, batch, module)
    with recording() as record:
        mine = train_step(twin, batch, torch.compile(twin, backend="deepep"))
    line = summary(case.name, record)
    table.append(line)
    assert not wrong(mine, eager, lambda: in_double(pristine, batch)), line
    assert eager.gradients
    fallbacks = [fields for event, fields in record.events if event == "fallback"]
    assert not fallbacks, line
    failed = [fields for event, fields in record.events if event == "pass-failed"]
    assert not failed, line
    kinds = Counter(graph.kind for graph in record.graphs)
    assert kinds["forward"] >= 1
    assert kinds["backward"] >= 1
    assert sum(len(graph.kernels) for graph in record.graphs) > 0, line


def test_a_wrong_gradient_is_seen() -> None:
    right = Step(torch.tensor(1.0), {"w": torch.ones(4), "b": torch.zeros(2)})
    off = Step(torch.tensor(1.0), {"w": torch.ones(4) * 1.001, "b": torch.zeros(2)})
    assert not wrong(right, right, lambda: right)
    assert [text.partition(":")[0] for text in wrong(off, right, lambda: right)] == ["w"]
    assert wrong(Step(right.loss, {"w": torch.ones(4)}), right, lambda: right) == ["b"]
