"""Trials of a budget: what would become of a graph, which stays as it is."""

from __future__ import annotations

import re

import pytest
import torch
from torch.fx import GraphModule

from deepcompile.backend import _Compiler
from deepcompile.codegen.steps import ProgramSpec
from deepcompile.options import Options
from deepcompile.pipeline.manager import PassManager
from tests.passes.checkpoint_graphs import joint_of


def graph() -> GraphModule:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
    joint = joint_of(module, torch.randn(4, 8)).graph
    return GraphModule(torch.nn.Module(), joint)


def without_addresses(program: ProgramSpec) -> str:
    return re.sub("0x[0-9a-f]+", "", repr(program))


def test_passes_run_once_for_both_ways_to_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = graph(), graph()
    text = str(first.graph)
    runs: list[GraphModule] = []
    run = PassManager.run

    def counted(self: PassManager, gm: GraphModule, *args: object, **kwargs: object) -> GraphModule:
        runs.append(gm)
        return run(self, gm, *args, **kwargs)

    monkeypatch.setattr(PassManager, "run", counted)
    compiler = _Compiler(Options())
    at_once = compiler._trial_program(first, "forward", False)
    in_turn = compiler._trial_program(first, "forward", True)
    assert len(runs) == 1
    assert len(in_turn.steps) > len(at_once.steps)
    alone = _Compiler(Options())._trial_program(first, "forward", True)
    assert without_addresses(in_turn) == without_addresses(alone)
    compiler._trial_program(second, "forward", True)
    compiler._trial_program(second, "backward", True)
    assert len(runs) == 4
    assert str(first.graph) == text
