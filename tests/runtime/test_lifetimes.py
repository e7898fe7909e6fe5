"""Programs that take and let go of memory as they run: same results, and the peak foretold."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from deepcompile import backend
from deepcompile.backend import recording
from deepcompile.codegen import lifetimes
from deepcompile.codegen.steps import LifetimeStep
from deepcompile.codegen.timeline import Timeline, timeline
from deepcompile.cost.gemm import GemmChoice
from deepcompile.recording import CompiledGraph, Recording
from deepcompile.runtime.arena import POOL
from deepcompile.runtime.program import Program
from deepcompile.runtime.recycle import OUTPUTS
from tests.runtime.tracked import course_of_bytes, peak_bytes


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend._Compiler, "follow_lifetimes", True)


@pytest.fixture
def nothing_is_small(following: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifetime steps for tensors of test size too."""
    monkeypatch.setattr(lifetimes, "LARGE", 1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        mixed = self.mix(self.norms[0](x)).view(batch, length, 3, self.heads, -1)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(F.gelu(self.wide(self.norms[1](x))))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Tanh()
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )


class Recurring(nn.Module):
    """One weight and one input used several times, and buffers written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6) / 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.5).add_(x.detach().sum(0))
        y = x @ self.weight
        return torch.sort(y * x, dim=-1)[0] @ self.weight.T + y * self.seen.clone()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(12), (7, 12)),
    "attention": (lambda: nn.Sequential(Attention(8, 2), Attention(8, 2)), (2, 5, 8)),
    "convolutions": (convolutions, (2, 3, 9, 9)),
    "recurring": (Recurring, (5, 6)),
}


def changes(record: Recording) -> list[LifetimeStep]:
    steps = [step for graph in record.graphs for step in graph.spec.steps]
    return [step for step in steps if isinstance(step, LifetimeStep)]


@pytest.mark.usefixtures("nothing_is_small")
class TestResults:
    @pytest.mark.parametrize("name", MODELS)
    def test_training_is_that_of_eager(self, name: str) -> None:
        make, shape = MODELS[name]

        def train(compile_it: bool) -> tuple[Any, ...]:
            torch.manual_seed(0)
            model = make()
            run = torch.compile(model, backend="deepep") if compile_it else model
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            found = []
            for _ in range(3):
                x = torch.randn(shape, requires_grad=True)
                optimizer.zero_grad()
                y = run(x)
                y.square().mean().backward()
                optimizer.step()
                found += [y.detach(), x.grad]
            return found, dict(model.state_dict())

        with recording() as record:
            got = train(True)
        assert [graph.kind for graph in record.graphs] == ["forward", "backward"]
        assert changes(record)
        torch.testing.assert_close(got, train(False), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: (y := (x * 2).exp(), y[1:, ::2], y.T, y.reshape(-1)),
            lambda x: (x, x * 2, x[1:], x.T),
            lambda x: (x.view(torch.int32), (x + 1).view(torch.int32)),
            lambda x: (x * 2).view(torch.int32) + 1,
            lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(-1, 2)) * 2) + 1,
            lambda x: (torch.sort(x)[0] + torch.cumsum(x, 0), torch.split((x * 2).cumsum(0), 2)),
            lambda x: ((x + 1).cumsum(0).sum(), 3),
            lambda x: (x.add_(1) * 2, x.sum()),
            lambda x: torch.empty(0, 4).add(x.new_zeros(0, 4)) + x[:0],
        ],
    )
    def test_views_inputs_and_mutation(self, function: Callable[[Tensor], Any]) -> None:
        compiled = torch.compile(function, backend="deepep")
        for _ in range(3):
            x = torch.randn(4, 4)
            mine = x.clone()
            torch.testing.assert_close(compiled(mine), function(x))
            torch.testing.assert_close(mine, x)

    def test_one_tensor_as_several_inputs(self) -> None:
        def f(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return (x * y).cumsum(0) @ z

        compiled, x = torch.compile(f, backend="deepep"), torch.randn(4, 4)
        compiled(torch.randn(4, 4), torch.randn(4, 4), torch.randn(4, 4))
        torch.testing.assert_close(compiled(x, x, x.T), f(x, x, x.T))

    @pytest.mark.slow
    def test_sizes_that_change(self) -> None:
        model = Attention(8, 2)
        compiled = torch.compile(model, backend="deepep", dynamic=True)
        with recording() as record:
            for length in (5, 3, 9):
                x = torch.randn(2, length, 8, requires_grad=True)
                mine = x.detach().clone().requires_grad_()
                compiled(mine).sum().backward()
                model(x).sum().backward()
                torch.testing.assert_close(mine.grad, x.grad, rtol=1e-4, atol=1e-5)
        assert changes(record)
        assert record.graphs[0].spec.sizes

    def test_backward_twice(self) -> None:
        model = mlp(6)
        x = torch.randn(5, 6, requires_grad=True)
        with functorch_config.patch(donated_buffer=False):
            loss = torch.compile(model, backend="deepep")(x).square().sum()
            loss.backward(retain_graph=True)
            first = x.grad.clone()
            loss.backward()
        torch.testing.assert_close(x.grad, 2 * first)
        (wanted,) = torch.autograd.grad(model(x).square().sum(), x)
        torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-5)

    def test_an_optimizer(self) -> None:
        def train(compile_it: bool) -> list[Tensor]:
            torch.manual_seed(0)
            model = mlp(6)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            step = torch.compile(optimizer.step, backend="deepep") if compile_it else optimizer.step
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(5, 6)).square().sum().backward()
                step()
            return [p.detach() for p in model.parameters()]

        torch.testing.assert_close(train(True), train(False))

    def test_several_threads(self) -> None:
        def f(x: Tensor, w: Tensor) -> Tensor:
            return (torch.softmax(x @ w, -1) @ w.T).cumsum(0).sum(-1)

        compiled, w = torch.compile(f, backend="deepep"), torch.randn(16, 24)
        compiled(torch.randn(10, 16), w)
        wrong: list[int] = []

        def work(seed: int) -> None:
            x = torch.randn(10, 16, generator=torch.Generator().manual_seed(seed))
            expected = f(x, w)
            for _ in range(100):
                if not torch.allclose(compiled(x, w), expected, rtol=1e-4, atol=1e-4):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_an_index_out_of_range_names_its_line(self) -> None:
        def f(table: Tensor, index: Tensor) -> Tensor:
            y = (table * 2).cumsum(0).exp()
            return y[index] * 2  # the line to blame

        compiled, table = torch.compile(f, backend="deepep"), torch.randn(5, 8)
        with recording() as record:
            torch.testing.assert_close(
                compiled(table, torch.tensor([4, 0])), f(table, torch.tensor([4, 0]))
            )
        assert changes(record)
        with pytest.raises(IndexError, match=r"test_lifetimes\.py"):
            compiled(table, torch.tensor([5, 0]))
        self._holds_nothing(record)

    def test_nothing_outlives_a_call_that_fails(self) -> None:
        broken: list[bool] = []

        @torch.library.custom_op("lifetimetest::breaks", mutates_args=())
        def breaks(x: Tensor) -> Tensor:
            if broken:
                raise ValueError("made to fail")
            return x.clone()

        @breaks.register_fake
        def _(x: Tensor) -> Tensor:
            return torch.empty_like(x)

        compiled = torch.compile(lambda x: breaks((x * 2).cumsum(0).exp()) + 1, backend="deepep")
        with recording() as record:
            compiled(torch.randn(4, 4))
        broken.append(True)
        with pytest.raises(ValueError, match="made to fail"):
            compiled(torch.randn(4, 4))
        self._holds_nothing(record)

    def _holds_nothing(self, record: Recording) -> None:
        (graph,) = record.graphs
        held = [
            tensor
            for bound in graph.program._bound.values()
            for frame in bound.frames
            for tensor in frame.tensors
        ]
        assert held
        assert all(tensor is None for tensor in held)


# -- memory ---------------------------------------------------------------------------------------


@contextmanager
def without_scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products by ATen, which need no memory beside their result; oneDNN's do inside the call."""
    with monkeypatch.context() as patch:
        patch.setattr(backend._Compiler, "_gemm_choice", lambda self: GemmChoice(onednn=False))
        yield


def copies(args: list[Any]) -> list[Any]:
    """The same arguments in memory of their own, laid out alike."""
    return [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t.detach())
        if isinstance(t, Tensor)
        else t
        for t in args
    ]


def programs_and_arguments(
    run: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[CompiledGraph, list[Any]]]:
    """The graphs that `run` compiles and calls, each with copies of its last arguments."""
    given: dict[int, list[Any]] = {}
    call = Program.__call__

    def see(self: Program, args: list[Any]) -> list[Any]:
        given[id(self)] = copies(args)
        return call(self, args)

    with monkeypatch.context() as patch, without_scratch(monkeypatch), recording() as record:
        patch.setattr(Program, "__call__", see)
        run()
    return [(graph, given[id(graph.program)]) for graph in record.graphs]


def foretold(graph: CompiledGraph, args: list[Any], **more: Any) -> Timeline:
    spec, program = graph.spec, graph.program
    sizes = {name: how(args) for name, how in spec.sizes.items()}
    (bound,) = (b for b in program._bound.values() if b.sizes == sizes)
    # What the runtime adds to the arena: workspaces of threads, and bytes that align it.
    added = bound.arena_bytes + 64 - bound.arena.size if bound.arena_bytes else 0
    return timeline(spec, sizes, workspace=added, **more)


def measured(graph: CompiledGraph, args: list[Any]) -> int:
    """The peak of a call of a program whose inputs nobody else holds, they themselves counted."""
    POOL.clear()
    OUTPUTS.clear()
    inputs = sum(t.untyped_storage().nbytes() for t in args if isinstance(t, Tensor))
    return inputs + peak_bytes(graph.program, lambda: copies(args))


LARGE_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(256), (512, 256)),
    "deep": (lambda: nn.Sequential(*(mlp(128) for _ in range(4))), (700, 128)),
    "attention": (lambda: nn.Sequential(Attention(128, 4), Attention(128, 4)), (4, 64, 128)),
}


@pytest.mark.parametrize("name", LARGE_MODELS)
@pytest.mark.parametrize("follow", [True, False])
def test_the_peak_is_the_one_foretold(
    name: str, follow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend._Compiler, "follow_lifetimes", follow)
    torch.manual_seed(0)
    make, shape = LARGE_MODELS[name]
    model, x = make(), torch.randn(shape)
    run = lambda: torch.compile(model, backend="deepep")(x).square().sum().backward()  # noqa: E731
    found = programs_and_arguments(run, monkeypatch)
    assert [graph.kind for graph, _ in found] == ["forward", "backward"]
    for graph, args in found:
        assert any(isinstance(step, LifetimeStep) for step in graph.spec.steps) == follow
        # The scratch of kernels of ATen and small temporaries: less than a hundredth.
        assert measured(graph, args) == pytest.approx(foretold(graph, args).peak, rel=0.01)


@pytest.mark.usefixtures("following")
def test_the_peak_is_foretold_for_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(128)
    compiled = torch.compile(model, backend="deepep", dynamic=True)

    def run() -> None:
        for rows in (400, 1000):
            compiled(torch.randn(rows, 128)).square().sum().backward()

    for graph, args in programs_and_arguments(run, monkeypatch):
        assert graph.spec.sizes
        assert measured(graph, args) == pytest.approx(foretold(graph, args).peak, rel=0.01)


@pytest.mark.usefixtures("following")
def test_what_backward_needs_no_more_dies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither autograd nor AOTAutograd holds saved tensors or gradients while our program runs."""
    model = nn.Sequential(*(mlp(128) for _ in range(4)))
    compiled, x = torch.compile(model, backend="deepep"), torch.randn(700, 128)
    step = lambda: (compiled(x) * 0.5).sum().backward()  # noqa: E731
    _, (backward, args) = programs_and_arguments(step, monkeypatch)
    parameters = {tuple(p.shape) for p in model.parameters()}
    pinned = {
        number
        for number, arg in enumerate(args)
        if tuple(arg.shape) in parameters or tuple(arg.T.shape) in parameters or arg.equal(x)
    }
    expected = foretold(backward, args, pinned_inputs=pinned)
    model.zero_grad()
    POOL.clear()
    course = course_of_bytes(lambda loss: loss.backward(), lambda: (compiled(x) * 0.5).sum())
    # After the start come the gradient that enters the program, its last input, and the block of
    # small intermediates.
    tangent = [span for span in expected.spans if span.role == "input"][-1]
    before = expected.live(-1) - tangent.nbytes - _arena(expected)
    assert max(course) == pytest.approx(expected.peak - before, rel=0.01)
    saved = before - sum(s.nbytes for s in expected.spans if s.role == "constant")
    grads = sum(span.nbytes for span in expected.owners(expected.steps) if span.role == "output")
    assert course[-1] == pytest.approx(grads - saved, rel=0.02)


def _arena(found: Timeline) -> int:
    return sum(span.nbytes for span in found.spans if span.role == "arena")


@pytest.mark.usefixtures("following")
def test_an_input_dies_while_the_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[bool] = []
    held: list[weakref.ref[Tensor]] = []

    @torch.library.custom_op("lifetimetest::look", mutates_args=())
    def look(x: Tensor) -> Tensor:
        alive.append(bool(held) and held[-1]() is not None)
        return x.clone()

    @look.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    with recording() as record:
        compiled = torch.compile(lambda x: look(look(x).sin() * 2), backend="deepep")
        compiled(torch.randn(200, 200))
    args = [torch.randn(200, 200)]
    held.append(weakref.ref(args[0]))
    alive.clear()
    record.graphs[0].program(args)
    assert alive == [True, False]


def test_without_it_programs_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(128), torch.randn(700, 128)
    asked: list[int] = []
    empty = type(OUTPUTS).empty

    def see(self: Any, shape: Any, strides: Any, dtype: Any, nbytes: int) -> Tensor:
        asked.append(nbytes)
        return empty(self, shape, strides, dtype, nbytes)

    for follow in (False, True):
        monkeypatch.setattr(backend._Compiler, "follow_lifetimes", follow)
        torch._dynamo.reset()
        with monkeypatch.context() as patch, recording() as record:
            patch.setattr(type(OUTPUTS), "empty", see)
            torch.compile(model, backend="deepep")(x).sum().backward()
        made = [s for graph in record.graphs for s in graph.spec.slots if s.storage == "output"]
        storages = {slot.storage for graph in record.graphs for slot in graph.spec.slots}
        assert len(asked) == (0 if follow else len(made))
        assert bool(changes(record)) == ("own" in storages) == follow
        written_over = [
            b
            for graph in record.graphs
            for op in graph.spec.kernels
            for b in op.nest.buffers
            if b.role == "inout"
        ]
        assert bool(written_over) == follow
        asked.clear()
