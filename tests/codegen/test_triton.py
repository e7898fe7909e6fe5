"""Triton kernels: equal to the interpreter of nests, whole models equal to eager, and sm_90 code.

Where there is no GPU, Triton's interpreter runs them; `conftest.py` turns it on.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepcompile.backend import recording
from deepcompile.codegen import triton_spelling
from deepcompile.codegen.triton_kernel import emit_triton
from deepcompile.codegen.triton_schedule import TritonSchedule, plan_triton
from deepcompile.codegen.triton_spelling import CannotEmit
from deepcompile.cost.gpus import GPUS
from deepcompile.crosscompile import cross_compile
from deepcompile.demo.model import ModelConfig
from deepcompile.demo.model import Transformer as DemoTransformer
from deepcompile.errors import CompileError
from deepcompile.ir.interpret import TORCH_DTYPES, interpret
from deepcompile.ir.nest import Kernel, Load
from tests.codegen.triton_models import Transformer
from tests.numerics.random_graphs import difference, random_graph, run

triton = pytest.importorskip("triton")
F = torch.nn.functional
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from deepcompile.runtime.triton_interpreter import install  # noqa: E402
from deepcompile.runtime.triton_modules import load_source  # noqa: E402
from tests.codegen.triton_launch import launch  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _libdevice() -> None:
    if DEVICE == "cpu":
        install()


def _layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b)


def _rms_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w)


def _softmax(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.softmax(x * w, -1)


def _cross_entropy(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.cross_entropy(x, (w[: len(x)].abs() * 3).long())


def _dropout_residual(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.dropout(F.gelu(x) * w, 0.3) + b


def _reductions(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    rows = (x.argmax(-1), x.max(-1).values, x.argmin(-1), x.prod(-1), (x > 0).any(-1))
    return *rows, x.min(), (x > -5).all(0)


def _columns(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return x.sum(0) * w, x.var(0), x.amax(0), x.T.contiguous().logsumexp(-1)


def _gather(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x[:, (b.abs() * 5).long() % 7] + torch.roll(x, 1, 0) - x.flip(1)


def _swiglu(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    gate, value = (x * w).repeat(1, 2).chunk(2, -1)
    return F.silu(gate) * value + torch.tanh(b) * torch.erf(x) - torch.exp2(w)


FUNCTIONS = [
    _layer_norm, _rms_norm, _softmax, _cross_entropy, _dropout_residual, _reductions, _columns,
    _gather, _swiglu,
]  # fmt: skip


def kernels_of(function: Callable[..., object], dtype: torch.dtype) -> list[Kernel]:
    """The nests of forward and backward, from the ordinary compiler of the CPU."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    given = [torch.randn(s, dtype=dtype, requires_grad=True) for s in ((9, 21), (21,), (21,))]
    with recording() as record:
        made = torch.compile(function, backend="deepep")(*given)
        outputs = made if isinstance(made, tuple) else (made,)
        total = [out.float().sum() for out in outputs if out.requires_grad]
        torch.stack(total).sum().backward()
    return [op.nest for graph in record.graphs for op in graph.kernels]


def assert_equals_interpreter(nest: Kernel, schedule: TritonSchedule, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    expected: dict[str, Tensor] = {}
    for buffer in nest.buffers:
        count = 1
        for size in buffer.shape:
            count *= size.evaluate({})
        # With room for the strides of a view.
        values = torch.randn(4 * max(count, 1), generator=generator)
        dtype = TORCH_DTYPES[buffer.dtype]
        if not dtype.is_floating_point:
            values = values.abs() * 2
        expected[buffer.name] = values.to(dtype)
    got = {name: tensor.to(DEVICE, copy=True) for name, tensor in expected.items()}
    interpret(nest, expected, {})
    kernel = emit_triton(nest, schedule, "kernel")
    launch(kernel, load_source(kernel.source, folder), got, {})
    for name, tensor in expected.items():
        # bf16: one rounding more or less of terms that may cancel in a sum.
        close = {"rtol": 2e-2, "atol": 2e-2} if tensor.dtype == torch.bfloat16 else {
            "rtol": 1e-5, "atol": 1e-5
        }  # fmt: skip
        loose = close if tensor.dtype.is_floating_point else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(got[name].cpu(), tensor, equal_nan=True, **loose)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize(
    "function",
    [*FUNCTIONS[:-1], pytest.param(FUNCTIONS[-1], marks=pytest.mark.slow)],
    ids=lambda f: f.__name__.strip("_"),
)
def test_kernels_equal_the_interpreter(
    function: Callable[..., object], dtype: torch.dtype, tmp_path: Path
) -> None:
    """In one tile; with rows that loop over tiles and several programs that accumulate; and with
    rows that programs share.
    """
    for nest in kernels_of(function, dtype):
        whole = plan_triton(nest)
        looped = replace(
            whole, x_block=4, r_block=min(8, whole.r_block), persistent=not nest.reduced,
            programs=min(whole.programs, 2),
        )  # fmt: skip
        wide = replace(whole, wide=True)
        shared = replace(looped, x_block=1, programs=0, splits=3)
        for schedule in (whole, looped, wide, shared) if nest.reduced else (whole, looped, wide):
            assert_equals_interpreter(nest, schedule, tmp_path)


@pytest.mark.parametrize(
    "dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"]
)
def test_a_transformer_trains_as_in_eager(dynamic: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Transformer().to(DEVICE)
    ours = copy.deepcopy(model)
    compiled = torch.compile(
        ours, backend="deepep", dynamic=dynamic, options={"codegen": "triton", "strict": True}
    )
    for length in (7, 9) if dynamic else (7,):
        tokens = torch.randint(0, 37, (2, length), device=DEVICE)
        with recording() as record:
            loss = compiled(tokens)
            loss.backward()
        expected = model(tokens)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        for mine, theirs in zip(ours.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        assert not [fields for event, fields in record.events if event == "fallback"]


@pytest.mark.parametrize("seed", [3, 17, 42, 58, 91, 242])
def test_random_graphs(seed: int) -> None:
    """A few of those that the C++ kernels are tested with, forward only."""
    torch._dynamo.reset()
    graph = random_graph(seed)
    function = graph.function()
    expected, _ = run(function, graph.make_inputs(), graph)
    exact, _ = run(graph.function(wide=True), graph.make_inputs(wide=True), graph)
    compiled = torch.compile(function, backend="deepep", options={"codegen": "triton"})
    found, _ = run(compiled, graph.make_inputs(), graph)
    names = [*graph.outputs, *(given.name for given in graph.inputs)]
    for name, mine, theirs, wide in zip(names, found, expected, exact, strict=True):
        same, eps = graph.properties(name)
        assert difference(mine, theirs, same, eps, wide) is None, name


def test_a_bad_index_is_an_index_error() -> None:
    table, at = torch.randn(5, 4, device=DEVICE), torch.tensor([1, 9], device=DEVICE)
    function = torch.compile(
        lambda table, at: table[at] * 2, backend="deepep", options={"codegen": "triton"}
    )
    with pytest.raises(IndexError, match="test_triton"):
        function(table, at)
    assert function(table, at.clamp(max=4)).shape == (2, 4)


def _refuses_sine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the emitter refuse one op, as it would one without a spelling."""

    def spell(op: str, dtype: str) -> str:
        if op == "sin":
            raise CannotEmit("sin is refused here")
        return triton_spelling.spell(op, dtype)

    monkeypatch.setattr("deepcompile.codegen.triton_values.spell", spell)


def test_an_op_without_triton_runs_alone_as_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    _refuses_sine(monkeypatch)
    x = torch.rand(8, device=DEVICE) + 1
    with recording() as record:
        got = torch.compile(
            lambda x: torch.sin(x) * 2, backend="deepep", options={"codegen": "triton"}
        )(x)
    torch.testing.assert_close(got, torch.sin(x) * 2)
    reasons = [fields["reason"] for event, fields in record.events if event == "fallback"]
    assert len(reasons) == 1
    assert "sin is refused" in reasons[0]


def test_in_strict_mode_an_op_without_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    _refuses_sine(monkeypatch)
    x = torch.rand(8, device=DEVICE)
    options = {"codegen": "triton", "strict": True}
    compiled = torch.compile(lambda x: torch.sin(x) * 2, backend="deepep", options=options)
    with pytest.raises(Exception, match="sin is refused") as caught:
        compiled(x)
    error = next(e for e in _causes(caught.value) if isinstance(e, CompileError))
    assert error.origin is not None
    assert "test_triton.py" in error.origin
    assert error.source is not None
    assert "torch.sin(x) * 2" in error.source


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def test_in_one_tile_every_buffer_is_read_and_written_once() -> None:
    for function in (_layer_norm, _rms_norm, _softmax):
        for nest in kernels_of(function, torch.float32):
            text = emit_triton(nest, plan_triton(nest), "kernel").functions[0].text
            loads = {
                buffer.name: text.count(f"tl.load({buffer.name} + ") for buffer in nest.buffers
            }
            stores = {
                buffer.name: text.count(f"tl.store({buffer.name} + ") for buffer in nest.buffers
            }
            assert max(loads.values()) == 1, loads
            assert max(stores.values()) == 1, stores


def test_without_the_interpreter_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    options = {"codegen": "triton", "strict": True}
    with pytest.raises(Exception, match="TRITON_INTERPRET=1"):
        torch.compile(lambda x: x.sin() + 3, backend="deepep", options=options)(torch.ones(3))


@pytest.mark.slow
def test_the_number_of_distinct_kernels_does_not_grow_with_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equal layers have equal kernels; nothing is compiled here."""
    monkeypatch.setattr("deepcompile.crosscompile.facts._build", lambda kernel, gpu: "not wanted")
    found = {}
    for layers in (2, 4):
        config = ModelConfig(vocabulary=64, layers=layers, hidden=16, feedforward=32, context=8)
        tokens = torch.zeros(2, 8, dtype=torch.int64)
        found[layers] = cross_compile(DemoTransformer(config), (tokens, tokens), GPUS[90]).kernels
    distinct = {layers: sum(k.distinct for k in kernels) for layers, kernels in found.items()}
    assert distinct[2] == distinct[4]
    assert len(found[2]) < len(found[4])


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("transformer", "cuda:90"),
        pytest.param("rows", "cuda:80", marks=pytest.mark.slow),
        pytest.param("transformer", "cuda:80", marks=pytest.mark.slow),
        pytest.param("rows", "cuda:90", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_a_gpu_without_one(model: str, target: str, tmp_path: Path) -> None:
    """No kernel falls back, none spills, and equal layers share their code."""
    factory = Path(__file__).with_name("triton_models.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable, "-m", "deepcompile", "compile", f"{factory}:{model}",
            "--target", target, "--run-dir", str(tmp_path / "runs"), "--json",
        ],
        capture_output=True,
        text=True,
        env=environment | {"DEEPCOMPILE_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["fallbacks"] == []
    assert found["kernels"]
    assert all(kernel["spilled"] == 0 for kernel in found["kernels"])
    assert all(kernel["error"] is None for kernel in found["kernels"])
    if model == "transformer":
        distinct = sum(kernel["distinct"] for kernel in found["kernels"])
        assert distinct < len(found["kernels"]) / 3
    kept = sorted((tmp_path / "runs").glob("*/kernels/*/kernel.ptx"))
    assert len(kept) == len(found["kernels"])
    assert f".target sm_{target.partition(':')[2]}" in kept[0].read_text()


def test_a_schedule_takes_64_bits_where_an_index_needs_them() -> None:
    def far(kernel: Kernel, stride: int) -> Kernel:
        stage = kernel.stages[0]
        body = tuple(
            replace(i, index=i.index * stride) if isinstance(i, Load) else i for i in stage.body
        )
        return replace(kernel, stages=(replace(stage, body=body),))

    (nest,) = kernels_of_one(lambda x: x + 1, torch.randn(1000))
    assert not plan_triton(nest).wide
    assert not plan_triton(far(nest, 1000)).wide
    assert plan_triton(far(nest, 10_000_000)).wide


def kernels_of_one(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Kernel]:
    """The nests of one function of one tensor."""
    torch._dynamo.reset()
    with recording() as record:
        torch.compile(function, backend="deepep")(x)
    return [op.nest for graph in record.graphs for op in graph.kernels]
