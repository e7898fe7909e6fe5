"""Whole models in Triton, without a GPU: numbers by the interpreter, code for GPUs not there."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

from deepcompile.backend import recording
from tests.models.test_transformers import CASES, Case, in_double, train_step, wrong

pytest.importorskip("transformers")
pytest.importorskip("triton")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_one_training_step_by_the_interpreter_equals_eager(case: Case) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, batch = case.build(), case.batch()
    twin, pristine = copy.deepcopy(module), copy.deepcopy(module)
    eager = train_step(module, batch, module)
    options = {"codegen": "triton"}
    with recording() as record:
        mine = train_step(twin, batch, torch.compile(twin, backend="deepep", options=options))
    assert not wrong(mine, eager, lambda: in_double(pristine, batch))
    assert not [fields for event, fields in record.events if event == "fallback"]
    assert sum(len(graph.kernels) for graph in record.graphs) > 0


COMPILE = """
import json, sys
import torch
from benchmarks.models import build, loss_of
from deepcompile.cost.gpus import GPUS
from deepcompile.crosscompile import cross_compile


class Loss(torch.nn.Module):
    def __init__(self, module, names):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *tensors):
        return loss_of(self.module, dict(zip(self.names, tensors)))


model = build(sys.argv[1])
# Else transformers warns that it takes its default, and the warning would end the graph.
model.module.loss_type = getattr(model.module, "loss_type", None) or "ForCausalLM"
batch = model.batch(0)
gpu = GPUS[int(sys.argv[2])]
found = cross_compile(Loss(model.module, list(batch)), tuple(batch.values()), gpu)
spilled = {kernel.name: kernel.spilled for kernel in found.kernels if kernel.spilled}
print(json.dumps([len(found.kernels), len(found.fallbacks), spilled]))
"""


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["demo", "bert", "vit", "gpt2"])
def test_the_benchmark_models_compile_without_spilling(name: str, capability: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, name, str(capability)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kernels, fallbacks, spilled = json.loads(done.stdout.splitlines()[-1])
    assert kernels > 20
    assert not fallbacks
    assert not spilled
