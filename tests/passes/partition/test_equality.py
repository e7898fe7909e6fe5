"""Steps of training on a mesh give what one device gives: loss, gradients, parameters afterwards.

All ranks run in one process. On a data axis each has rows of its own and gradients are averaged.
"""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.sharding_models import DECODERS, FAMILIES, Subject, decoder_subject
from deepcompile.ir.placements import placements_text
from tests.passes.partition.harness import (
    compare_with_one_device,
    describe,
    replicated_nodes,
    share_of_memory,
)

MESHES = ("tp=2", "tp=4", "dp=2,tp=2")
QUICK = {
    ("llama", "tp=4"),
    ("gpt2", "dp=2,tp=2"),
    ("bert", "tp=2"),
    ("mixtral", "tp=4"),
    ("convnet", "tp=2"),
    ("convnet", "tp=4"),
    ("convnet", "dp=2,tp=2"),
}
OURS = {"convnet"}
SUBJECTS = {subject.name: subject for subject in FAMILIES}

# Of parameters, gradients and optimizer state, a rank's share of what one device holds: of tensor
# axes at most 1.1 times an equal share.
SLACK = 1.1

HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None


def _cases() -> list[object]:
    return [
        pytest.param(
            subject,
            mesh,
            id=f"{subject.name}-{mesh}",
            marks=[] if (subject.name, mesh) in QUICK else [pytest.mark.slow],
        )
        for subject in FAMILIES
        for mesh in MESHES
    ]


@pytest.mark.parametrize(("subject", "mesh"), _cases())
def test_training_on_a_mesh_equals_one_device(subject: Subject, mesh: str) -> None:
    if subject.name not in OURS and not HAS_TRANSFORMERS:
        pytest.skip("transformers is not installed")
    difference, parts = compare_with_one_device(subject, mesh)
    assert not difference.wrong, difference
    ranks = 4 if mesh == "tp=4" else 2
    assert share_of_memory(parts) <= SLACK / ranks + 1e-9
    assert parts.choice.solution.gap <= 0.01
    missing = [describe(node) for node, lacks in replicated_nodes(parts) if lacks]
    assert not missing, f"no rule for {missing}"


def test_within_a_limit_parameters_are_shared_on_data_axes() -> None:
    """They are gathered before use, and gradients land on the shares."""
    subject = SUBJECTS["convnet"]
    _, free = compare_with_one_device(subject, "dp=2,tp=2", limit=1e9)
    (held,) = free.choice.solution.held
    difference, parts = compare_with_one_device(subject, "dp=2,tp=2", limit=0.8 * held)
    assert not difference.wrong, difference
    (less,) = parts.choice.solution.held
    assert less <= 0.8 * held
    placed = [placements_text(placements) for placements in parts.choice.parameters.values()]
    assert any(not text.startswith("R") for text in placed), placed


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_causal_language_models(name: str) -> None:
    if not HAS_TRANSFORMERS:
        pytest.skip("transformers is not installed")
    difference, parts = compare_with_one_device(decoder_subject(name), "tp=2")
    assert not difference.wrong, difference
    assert share_of_memory(parts) <= 0.55
    missing = [describe(node) for node, lacks in replicated_nodes(parts) if lacks]
    assert not missing, f"no rule for {missing}"
