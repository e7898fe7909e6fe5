"""What users do with models, through `torch.compile(backend="deepep")`: equal to eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepcompile.backend import recording

STRICT = {"strict": True}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def compiled(function: Any, **kwargs: Any) -> Any:
    return torch.compile(function, backend="deepep", options=STRICT, **kwargs)


def train(module: nn.Module, run: Any, batches: list[torch.Tensor], **options: Any) -> list[Any]:
    """Losses of a few optimiser steps, then all parameters, gradients and buffers."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    seen: list[Any] = []
    for batch in batches:
        optimizer.zero_grad()
        loss = run(batch)
        loss = loss if loss.dim() == 0 else loss.square().mean()
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
    seen += [p.detach() for p in module.parameters()]
    seen += [p.grad for p in module.parameters() if p.grad is not None]
    seen += list(module.buffers())
    return seen


def assert_trains_as_eager(
    module: nn.Module, batches: list[torch.Tensor], rtol: float = 1e-4, **kwargs: Any
) -> None:
    other = copy.deepcopy(module)
    expected = train(module, module, batches)
    with recording() as record:
        found = train(other, compiled(other, **kwargs), batches)
    assert record.graphs
    assert not [graph.fallback for graph in record.graphs if graph.fallback]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.head(F.rms_norm(self.embedding(tokens), (8,)))
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.first(x))
        torch._dynamo.graph_break()
        return F.softmax(self.second(x), -1)


class Counting(nn.Module):
    """A buffer that forward writes and then reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.detach().sum(0))
        return self.linear(x) * self.seen


def batches(*shape: int, count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(shape) for _ in range(count)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten()),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU("tanh"), nn.Softmax(-1)),
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Mish()),
        Breaks,
        Counting,
    ],
    ids=["batch-norm", "conv", "layer-norm", "group-norm", "graph-break", "written-buffer"],
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_modules_train(make: Callable[[], nn.Module], dynamic: bool) -> None:
    module = make()
    shape = {"Conv2d": (4, 2, 7, 7), "Conv1d": (4, 2, 9)}.get(
        type(next(module.children())).__name__, (5, 6)
    )
    assert_trains_as_eager(module, batches(*shape), dynamic=dynamic)


def test_tied_weights() -> None:
    tokens = [torch.randint(0, 11, (3, 7)) for _ in range(3)]
    assert_trains_as_eager(Tied(), tokens)


def test_frozen_parameters() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    for parameter in module[0].parameters():
        parameter.requires_grad_(False)
    assert_trains_as_eager(module, batches(5, 6))


def test_shapes_that_change_recompile_once() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU())
    other = copy.deepcopy(module)
    inputs = [torch.randn(n, 6) for n in (5, 9, 13, 2, 31)]
    with recording() as record:
        found = train(other, compiled(other), inputs)
    for a, b in zip(found, train(module, module, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert len([g for g in record.graphs if g.kind == "forward"]) == 2


def test_no_grad_and_eval() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU()).eval()
    x = torch.randn(5, 6)
    with torch.no_grad(), recording() as record:
        torch.testing.assert_close(compiled(module)(x), module(x))
    assert [graph.kind for graph in record.graphs] == ["inference"]


def test_inputs_are_written_and_outputs_alias() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x.mul_(2)
        y[1:].add_(x[1:])
        return x, x.t(), y + 1, y[0]

    given = [torch.randn(4, 4), torch.randn(4, 4)]
    other = [t.clone() for t in given]
    expected, found = function(*given), compiled(function)(*other)
    for a, b in zip([*found, *other], [*expected, *given], strict=True):
        torch.testing.assert_close(a, b)
    assert found[0].data_ptr() == other[0].data_ptr()
    assert found[1]._base is not None or found[1].data_ptr() == other[0].data_ptr()


def test_views_of_one_tensor_as_two_inputs() -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.add_(1)
        return a * b

    base, same = torch.arange(6.0), torch.arange(6.0)
    torch.testing.assert_close(compiled(function)(same[:4], same[2:]), function(base[:4], base[2:]))
    torch.testing.assert_close(same, base)


def test_backward_twice() -> None:
    weight = torch.randn(6, 6, requires_grad=True)
    x = torch.randn(4, 6)
    found = compiled(lambda x: F.softmax(F.gelu(x @ weight), -1).square().sum())(x)
    found.backward(retain_graph=True)
    once = weight.grad.clone()
    found.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_outputs_survive_the_next_call() -> None:
    function = compiled(lambda x: torch.exp(x).mul(2))
    first = function(torch.zeros(1024, 1024))
    kept = first.clone()
    second = function(torch.ones(1024, 1024))
    torch.testing.assert_close(first, kept)
    view = second[0]
    del second
    function(torch.zeros(1024, 1024))
    torch.testing.assert_close(view, torch.full((1024,), 2 * torch.e))


def test_autocast_bfloat16() -> None:
    module = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 8))
    exact = copy.deepcopy(module).double()
    other = copy.deepcopy(module)
    x = torch.randn(16, 32)
    exact(x.double()).square().mean().backward()
    for run in (module, compiled(other)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(x).float().square().mean()
        loss.backward()
    for p, q, r in zip(module.parameters(), other.parameters(), exact.parameters(), strict=True):
        eager, ours = (p.grad - r.grad).norm(), (q.grad - r.grad).norm()
        assert ours <= 2 * eager + 1e-3 * r.grad.norm()


def test_float16_with_a_gradient_scaler() -> None:
    module = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    other = copy.deepcopy(module)
    x = torch.randn(8, 16)
    results = []
    for model, run in ((module, module), (other, compiled(other))):
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = run(x).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


def test_dropout_recomputes_its_mask_and_repeats_under_a_seed() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    function = compiled(lambda x: F.dropout(x, 0.5) * 3)
    with recording() as record:
        torch.manual_seed(1)
        first = function(x)
        first.backward(torch.ones_like(first))
    assert torch.equal(x.grad != 0, first.detach() != 0)
    torch.testing.assert_close(x.grad[first != 0], torch.full_like(x.grad[first != 0], 6.0))
    assert 0.4 < (first != 0).double().mean() < 0.6
    (backward,) = [graph for graph in record.graphs if graph.kind == "backward"]
    saved = [ref.layout.dtype for ref in backward.spec.inputs]
    assert torch.bool not in saved
    torch.manual_seed(1)
    assert torch.equal(function(x), first)
    assert not torch.equal(function(x), first)


def test_threads_of_torch_are_respected() -> None:
    function = compiled(lambda x: F.softmax(x, -1).sum(0))
    x = torch.randn(3000, 100)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            torch.testing.assert_close(function(x), F.softmax(x, -1).sum(0))
    finally:
        torch.set_num_threads(before)


def test_an_index_out_of_range_is_an_index_error() -> None:
    table = torch.randn(10, 7)
    function = compiled(lambda i: F.embedding(i, table) * 2)
    torch.testing.assert_close(function(torch.tensor([1, 9])), table[[1, 9]] * 2)
    with pytest.raises(IndexError, match="embedding"):
        function(torch.tensor([1, 10]))
    torch.testing.assert_close(function(torch.tensor([0, 2])), table[[0, 2]] * 2)


@pytest.mark.parametrize("choice", [True, False])
def test_tuning_asks_the_machine_unless_bits_must_repeat(monkeypatch, choice: bool) -> None:
    from deepcompile import backend
    from deepcompile.cost.gemm import GemmChoice, default_gemm_choice

    measured = GemmChoice(onednn=choice, smallest=1)
    monkeypatch.setattr(backend, "measured_gemm_choice", lambda threads: measured)
    given = []
    make = backend.make_program
    monkeypatch.setattr(
        backend,
        "make_program",
        lambda graph, gemm, **rest: given.append(gemm) or make(graph, gemm, **rest),
    )
    x, y = torch.randn(32, 16), torch.randn(16, 8)
    for extra in ({}, {"deterministic": True}):
        torch._dynamo.reset()
        function = torch.compile(
            lambda x, y: torch.relu(x @ y),
            backend="deepep",
            options={**STRICT, "tune": "measure", **extra},
        )
        torch.testing.assert_close(function(x, y), torch.relu(x @ y), rtol=1e-4, atol=1e-5)
    assert given == [measured, default_gemm_choice(by_layout=True)]


def test_a_fallback_is_logged_at_info(caplog: pytest.LogCaptureFixture) -> None:
    from deepcompile.backend import _Compiler
    from deepcompile.options import Options

    for level, said in (("warning", False), ("info", True)):
        caplog.clear()
        caplog.set_level(0, "deepcompile")  # which puts it back as it was, too
        compiler = _Compiler(Options(log_level=level))
        caplog.handler.setLevel("DEBUG")
        compiler.note("fallback", reason="a test")
        assert ("a test" in caplog.text) is said
