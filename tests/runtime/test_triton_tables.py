"""Compiled updates of many tensors in Triton: equal to C++ and eager, few kernels for any number.

Where there is no GPU, Triton's interpreter runs them; `conftest.py` turns it on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, NAdam, Optimizer

from deepcompile.backend import Recording, recording
from deepcompile.codegen import triton_program
from deepcompile.codegen.steps import TableStep
from deepcompile.codegen.triton_spelling import CannotEmit
from deepcompile.codegen.triton_table import emit_triton_table
from deepcompile.runtime.device import driver_of

pytest.importorskip("triton")
from triton.runtime.errors import OutOfResources

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (0, 1, 7, 1000, 5000)
STEPS = 3
# Of eager, which rounds to half precision between its ops. C++ may differ by the last bit.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


class Factored(Optimizer):
    """Like Adafactor: second moments of rows and columns for matrices, of elements for the rest."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, {"lr": 1e-2, "decay": 0.8})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                square = p.grad.float() ** 2 + 1e-30
                kept = {"square": square}
                if p.dim() == 2:
                    kept = {"rows": square.mean(1, keepdim=True), "columns": square.mean(0)}
                for name, value in kept.items():
                    moment = state.setdefault(name, torch.zeros_like(value))
                    moment.lerp_(value, 1 - group["decay"])
                moment = state.get("square")
                if moment is None:
                    moment = state["rows"] * state["columns"] / state["rows"].mean()
                p.add_((p.grad.float() * moment.rsqrt()).to(p.dtype), alpha=-group["lr"])


RULES: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "adamw": lambda p: AdamW(p, lr=1e-2),
    "adamw-tensor-rate": lambda p: AdamW(p, lr=torch.tensor(1e-2)),
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "nadam": lambda p: NAdam(p),
    "factored": Factored,
}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def parameters(dtype: torch.dtype, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=generator).to(DEVICE, dtype) for size in sizes]
    return [torch.nn.Parameter(tensor) for tensor in made]


def train(optimizer: Optimizer, params: list[Tensor], codegen: str | None) -> Recording:
    """A few steps, in eager without `codegen`; each time with new gradients in new places."""
    generator = torch.Generator().manual_seed(1)
    options = {"codegen": codegen, "strict": True}
    step = optimizer.step
    if codegen is not None:
        step = torch.compile(step, backend="deepep", options=options)
    with recording() as record:
        for _ in range(STEPS):
            for p in params:
                # None so small that eager's second moment is 0 in float16.
                noise = torch.randn(p.shape, generator=generator)
                p.grad = (noise + noise.sign() / 2).to(DEVICE, p.dtype)
            step()
    return record


def state_of(optimizer: Optimizer, params: list[Tensor]) -> list[Tensor]:
    found = [value for p in params for value in optimizer.state[p].values()]
    return [*params, *(value for value in found if isinstance(value, Tensor))]


def tables(record: Recording) -> list[int]:
    """How many table steps each graph has; no graph may have any other."""
    for graph in record.graphs:
        assert graph.spec is not None
        assert all(isinstance(step, TableStep) for step in graph.spec.steps)
    return [len(graph.kernels) for graph in record.graphs]


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        pytest.param(
            rule,
            dtype,
            marks=[pytest.mark.slow] * (rule != "adamw" and dtype != torch.float32),
            id=f"{rule}-{dtype}",
        )
        for rule in RULES
        for dtype in TOLERANCE
    ],
)
def test_a_step_equals_eager_and_cpp(rule: str, dtype: torch.dtype) -> None:
    results = []
    for codegen in (None, "triton", "cpp"):
        if codegen == "cpp" and DEVICE != "cpu":
            continue
        torch._dynamo.reset()
        params = parameters(dtype)
        optimizer = RULES[rule](params)
        record = train(optimizer, params, codegen)
        if codegen is not None:
            assert max(tables(record)) <= 2
            assert not [fields for event, fields in record.events if event == "fallback"]
        results.append(state_of(optimizer, params))
    eager, ours, *rest = results
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance)
    for cpp in rest:
        torch.testing.assert_close(ours, cpp, rtol=tolerance / 4, atol=tolerance / 4)


def test_updates_that_reduce_have_kernels_of_their_own_and_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((8, 5), (3, 7), (6,), (9,))]
    results = []
    for codegen in (None, "triton"):
        params = [torch.nn.Parameter(tensor.to(DEVICE, copy=True)) for tensor in start]
        optimizer = Factored(params)
        train(optimizer, params, codegen)
        results.append(state_of(optimizer, params))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_code_and_launches_do_not_depend_on_the_number_of_parameters() -> None:
    texts = []
    for count in (2, 30):
        torch._dynamo.reset()
        params = parameters(torch.float32, tuple(range(1, 1 + count)))
        (graph,) = train(AdamW(params), params, "triton").graphs
        assert graph.spec is not None
        assert [type(step) for step in graph.spec.steps] == [TableStep, TableStep]
        texts.append([emit_triton_table(op.nest, "kernel").source for op in graph.kernels])
    assert len(texts[0]) == 2
    assert texts[0] == texts[1]


def test_a_table_that_cannot_be_written_runs_as_aten_for_each_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise CannotEmit("no spelling of digamma")

    monkeypatch.setattr(triton_program, "emit_triton_table", cannot)

    def update(a: Tensor, b: Tensor) -> None:
        for x in (a, b):
            x.copy_(torch.digamma(x) * 2)

    given = [torch.rand(size, device=DEVICE) + 1 for size in (5, 12)]
    expected = [torch.digamma(x) * 2 for x in given]
    with recording() as record, torch.no_grad():
        torch.compile(update, backend="deepep", options={"codegen": "triton"})(*given)
    torch.testing.assert_close(given, expected)
    assert set(tables(record)) == {1}
    reasons = [fields["reason"] for event, fields in record.events if event == "fallback"]
    assert ["digamma" in reason for reason in reasons] == [True]


def test_a_refused_table_runs_as_aten_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OutOfResources(2, 1, "shared memory")

    def update(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a.add_(c)
        b.add_(c)
        return a * 2, b * 2

    monkeypatch.setattr(type(driver_of(torch.device(DEVICE))), "load", refuse)
    given = [torch.ones(size, device=DEVICE) for size in (5, 2000)]
    compiled = torch.compile(update, backend="deepep", options={"codegen": "triton"})
    with recording() as record, torch.no_grad():
        for number in (2.0, 3.0):
            results = compiled(*given, torch.tensor(1.0, device=DEVICE))
            for tensor, result in zip(given, results, strict=True):
                assert (tensor == number).all()
                assert (result == 2 * number).all()
    assert set(tables(record)) == {1}
    reasons = [fields["reason"] for event, fields in record.events if event == "fallback"]
    assert ["OutOfResources" in reason for reason in reasons] == [True]


def test_results_of_rows_are_tensors_of_their_own() -> None:
    def update(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        first, second = c * 2 + a, d * 2 + b
        a.sub_(first)
        b.sub_(second)
        return first, second

    given = [torch.randn(shape, device=DEVICE) for shape in ((4, 5), (9,), (4, 5), (9,))]
    copies = [tensor.clone() for tensor in given]
    options = {"codegen": "triton", "strict": True}
    with torch.no_grad(), recording() as record:
        expected = update(*copies)
        found = torch.compile(update, backend="deepep", options=options)(*given)
    torch.testing.assert_close((found, given), (expected, copies))
    assert set(tables(record)) == {1}


COUNTERS = """
import torch
class Counters(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for number in range(4):
            self.register_buffer(f"mean{number}", torch.zeros(5000 + number))
    def forward(self, x):
        for mean in self.buffers():
            mean.mul_(0.9).add_(1)
        return x * 2
def counters():
    return Counters(), (torch.zeros(4),)
"""


@pytest.mark.slow
def test_a_gpu_that_is_not_there_gets_tables_too(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(COUNTERS)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable, "-m", "deepcompile", "compile", f"{tmp_path}/model.py:counters",
            "--target", "cuda:80", "--run-dir", str(tmp_path / "runs"), "--json",
        ],
        capture_output=True,
        text=True,
        env=environment | {"DEEPCOMPILE_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["fallbacks"] == []
    table, _ = sorted(found["kernels"], key=lambda kernel: -kernel["bytes_moved"])
    assert table["bytes_moved"] == sum(2 * 4 * (5000 + number) for number in range(4))
    assert table["spilled"] == 0
