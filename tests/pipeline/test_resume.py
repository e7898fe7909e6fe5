"""Every state of a dumped compile parses back to its text, and passes on it do what they did."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import deepcompile
from deepcompile.capture.own_ops import register_own_ops
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.demo.model import ModelConfig, Transformer
from deepcompile.inspect.resume import rest_of_run
from deepcompile.ir.graph_parser import parse_graph
from deepcompile.ir.graph_printer import print_graph
from deepcompile.pipeline.rundir import process_run
from tests.backend.budget_steps import blocks, rows, smallest, square_loss

OPTIONS = {"strict": True, "cache": False}


def dumped(folder: Path, act: Callable[[dict[str, Any]], None]) -> dict[str, list[Path]]:
    """The states of each graph that `act` compiles with the options it gets."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    act(OPTIONS | {"run_dir": str(folder)})
    path = process_run(folder).path
    return {graph.name: sorted(graph.glob("*.ir")) for graph in sorted((path / "graphs").iterdir())}


def check(states: dict[str, list[Path]]) -> None:
    """Each text comes back, and the rest of the run on each makes what the run made."""
    register_own_ops()
    for files in states.values():
        assert files[0].name == "000_input.ir"
        for file in files:
            text = file.read_text()
            assert "= ..." not in text
            assert print_graph(parse_graph(text)) == text, file
            expected = rest_of_run(file).last
            assert opt(file, "--from-run", "--no-verify-each") == expected.text, file


def opt(*arguments: Any) -> str:
    result = io.StringIO()
    with redirect_stdout(result):
        assert run(["opt", *map(str, arguments)]) == Exit.OK
    return result.getvalue()


def small_demo() -> Transformer:
    return Transformer(ModelConfig(layers=1, hidden=64, heads=2, feedforward=96, vocabulary=128))


def training(model: nn.Module, *inputs: Any, **how: Any) -> Callable[[dict[str, Any]], None]:
    """A forward and a backward pass, and one without gradients."""

    def act(options: dict[str, Any]) -> None:
        compiled = torch.compile(model, backend="deepep", options=options, **how)
        compiled(*inputs).sum().backward()
        with torch.no_grad():
            compiled(*inputs)

    return act


def test_demo(tmp_path: Path) -> None:
    tokens = torch.zeros(2, 256, dtype=torch.int64)
    states = dumped(tmp_path, training(small_demo(), tokens, tokens))
    kinds = [name.rpartition("_")[2] for name in states]
    assert sorted(kinds) == ["backward", "forward", "inference", "joint"]
    assert all("fuse-rows" in files[-1].name for n, files in states.items() if "joint" not in n)
    check(states)


@pytest.mark.slow
def test_whole_demo(tmp_path: Path) -> None:
    tokens = torch.zeros(8, 256, dtype=torch.int64)
    states = dumped(tmp_path, training(Transformer(ModelConfig()), tokens, tokens))
    check(states)
    for files in states.values():
        # Each pass is compared with the graph before it on random numbers, too.
        assert opt(files[0], "--from-run") == rest_of_run(files[0]).last.text


class Mixed(nn.Module):
    """Embeddings, dropout, batch normalisation, convolution, pooling, tables of constants."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.conv = nn.Conv1d(12, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.25)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.embedding(tokens).transpose(1, 2))
        x = self.dropout(nn.functional.gelu(self.norm(x)))
        table = torch.tensor([0.5, -1.0, float("inf"), 2.0, 1.0, 1.0, 1.0, 0.0])
        x = torch.where(table[:, None] > 1, x, x * 2.0)
        return nn.functional.max_pool1d(x, 2).softmax(-1).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_mixed(dynamic: bool, tmp_path: Path) -> None:
    tokens = torch.randint(0, 20, (3, 10))
    states = dumped(tmp_path, training(Mixed(), tokens, dynamic=dynamic))
    assert len(states) == 4
    texts = [file.read_text() for files in states.values() for file in files]
    assert any("symbols s" in text for text in texts) == dynamic
    check(states)


def test_optimizer(tmp_path: Path) -> None:
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (16,), (3, 5), (7,), (2,))]
    optimizer = torch.optim.AdamW(parameters, lr=torch.tensor(1e-2))

    def act(options: dict[str, Any]) -> None:
        step = torch.compile(optimizer.step, backend="deepep", options=options)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        step()

    states = dumped(tmp_path, act)
    texts = [file.read_text() for files in states.values() for file in files]
    assert any("= batch @" in text for text in texts)
    check(states)


@pytest.mark.slow
def test_memory_budget(tmp_path: Path) -> None:
    module, x = blocks(), rows()
    budget = smallest(module, x)

    def act(options: dict[str, Any]) -> None:
        options |= {"memory_budget": budget}
        compiled = torch.compile(square_loss, backend="deepep", options=options)
        compiled(module, x).backward()

    states = dumped(tmp_path, act)
    backward = next(files for name, files in states.items() if "backward" in name)
    assert "{segment=" in backward[0].read_text()
    check(states)


def test_mesh(tmp_path: Path) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        x = torch.randn(8, 16)
        model = deepcompile.parallelize(model, "dp=2,tp=2", (x,))
        states = dumped(tmp_path, training(model, x))
        joint = next(files for name, files in states.items() if "joint" in name)
        assert "deepcompile.unshard.default" in joint[0].read_text()
        assert "_c10d_functional." in joint[-1].read_text()
        check(states)
    finally:
        torch._dynamo.reset()
        dist.destroy_process_group()
