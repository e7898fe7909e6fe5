"""Programs at run time: threads, calls from several threads, memory, empty tensors, failures."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deepcompile import backend
from deepcompile.errors import CompileError, OptionError
from deepcompile.runtime.arena import POOL
from deepcompile.runtime.program import Bound


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    dynamic = options.pop("dynamic", False)
    return torch.compile(
        function, backend="deepep", fullgraph=True, dynamic=dynamic, options=options
    )


def norm_and_sums(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    y = F.layer_norm(x, (x.shape[-1],), w)
    return y, (y * 2).sum(0), y.sum(), y.amax()


class TestThreads:
    def test_the_number_of_threads_may_change_between_calls(self):
        x, w = torch.randn(3000, 200), torch.randn(200)
        expected = norm_and_sums(x, w)
        f = compiled(norm_and_sums)
        for threads in (1, 2, 1, 4, 2):
            torch.set_num_threads(threads)
            torch.testing.assert_close(f(x, w), expected, rtol=1e-4, atol=1e-3)

    def test_the_same_number_of_threads_gives_the_same_bits(self):
        x, w = torch.randn(3000, 200), torch.randn(200)
        f = compiled(norm_and_sums)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            first = f(x, w)
            for _ in range(5):
                assert all(map(torch.equal, f(x, w), first))

    def test_kernels_use_as_many_threads_as_torch(self):
        """Seen from outside: processor time of all threads against that of the calling one."""
        x = torch.randn(4000, 1000)
        f = compiled(lambda x: x.sin().exp().tanh().log1p().sum(-1))
        f(x)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            f(x)
            others = 0.0
            before = _times_of_threads()
            for _ in range(10):
                f(x)
            after = _times_of_threads()
            mine = threading.get_native_id()
            others = sum(t - before.get(id, 0.0) for id, t in after.items() if id != mine)
            own = after[mine] - before[mine]
            if threads == 1:
                assert others <= 0.1 * own + 0.03
            else:
                assert others >= 0.2 * own

    def test_an_option_fixes_the_number(self):
        x, w = torch.randn(3000, 200), torch.randn(200)
        torch.set_num_threads(2)
        f = compiled(norm_and_sums, threads=1)
        with backend.recording() as record:
            found = f(x, w)
        torch.testing.assert_close(found, norm_and_sums(x, w), rtol=1e-4, atol=1e-3)
        assert record.graphs[0].program.threads == 1


def _times_of_threads() -> dict[int, float]:
    return {t.id: t.user_time + t.system_time for t in psutil.Process().threads()}


class TestSeveralCallers:
    def test_two_threads_call_one_function(self):
        def f(x: Tensor, w: Tensor) -> Tensor:
            return (F.softmax(x @ w, -1) @ w.T).cumsum(0).sum(-1)

        call = compiled(f)
        w = torch.randn(64, 96)
        call(torch.randn(50, 64), w)
        problems: list[BaseException] = []

        def work(seed: int) -> None:
            x = torch.randn(50, 64, generator=torch.Generator().manual_seed(seed))
            expected = f(x, w)
            try:
                for _ in range(200):
                    torch.testing.assert_close(call(x, w), expected, rtol=1e-4, atol=1e-4)
            except BaseException as error:
                problems.append(error)

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not problems, problems[0]

    def test_a_frame_that_another_thread_takes_is_not_missed(self):
        """Looking whether there is a frame and taking it are two steps."""

        class Contested(list):
            def __bool__(self) -> bool:
                return True

        with backend.recording() as record:
            f = compiled(lambda x: (x * 2).cumsum(0) + 1)
            x = torch.randn(5, 6)
            expected = f(x)
        program = record.graphs[0].program
        for bound in program._bound.values():
            bound.frames = Contested()
        torch.testing.assert_close(f(x), expected)

    def test_one_program_inside_another(self):
        inner = compiled(lambda x: (x * 2).cumsum(0).exp())

        @torch.library.custom_op("deepcompile_test::nested", mutates_args=())
        def nested(x: Tensor) -> Tensor:
            return inner(x).clone()

        @nested.register_fake
        def _(x: Tensor) -> Tensor:
            return torch.empty_like(x)

        def f(x: Tensor) -> Tensor:
            return ((x + 1).cumsum(1) * torch.ops.deepcompile_test.nested(x - 1)).sum(0)

        x = torch.randn(7, 300) / 10
        torch.testing.assert_close(compiled(f)(x), f(x))


class TestMemory:
    def steps(self, count: int) -> None:
        model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 10))
        step = torch.compile(model, backend="deepep")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x, y = torch.randn(256, 64), torch.randint(10, (256,))

        def train(times: int) -> int:
            for _ in range(times):
                optimizer.zero_grad()
                F.cross_entropy(step(x), y).backward()
                optimizer.step()
            gc.collect()
            return psutil.Process().memory_info().rss

        train(50)
        before = train(50)
        after = train(count)
        assert after - before < 4 << 20, f"{(after - before) / 2**20:.1f} MiB more"

    def test_resident_memory_stays_flat(self):
        self.steps(200)

    @pytest.mark.slow
    def test_resident_memory_stays_flat_for_long(self):
        self.steps(1000)

    def test_nothing_outlives_a_call(self):
        f = compiled(lambda x: (x * 2).cumsum(0) + 1)
        x = torch.randn(100, 100)
        y = f(x)
        watched = [weakref.ref(x), weakref.ref(y)]
        del x, y
        gc.collect()
        assert [ref() for ref in watched] == [None, None]

    def test_growing_sizes_do_not_keep_each_block(self):
        """One arena block is kept, not one for each size that was ever seen."""

        def f(x: Tensor) -> Tensor:
            return ((x * 2).cumsum(0) + 1).exp().cumsum(1).sum()

        with backend.recording() as record:
            call = compiled(f, dynamic=True)
            call(torch.randn(9, 1000))
        POOL.clear()
        program = record.graphs[0].program
        sizes = range(100, 2000, 100)
        for rows in sizes:
            call(torch.randn(rows, 1000))
        held = {
            id(frame.block): frame.block.numel()
            for bound in program._bound.values()
            for frame in _frames(bound)
            if frame.block is not None
        }
        assert len(held) <= 2
        views = [
            tensor.untyped_storage().data_ptr()
            for bound in program._bound.values()
            for frame in _frames(bound)
            for tensor in frame.tensors
            if tensor is not None
        ]
        assert len(set(views)) <= 2

    def test_an_output_may_be_kept_while_the_function_runs_again(self):
        f = compiled(lambda x: (x * 2, (x + 1).cumsum(0)))
        first = f(torch.full((600, 600), 1.0))
        copies = [t.clone() for t in first]
        for value in (2.0, 3.0, 4.0):
            f(torch.full((600, 600), value))
        assert all(map(torch.equal, first, copies))

    def test_views_and_arrays_keep_an_output(self):
        f = compiled(lambda x: x * 2)
        view = f(torch.full((600, 600), 1.0))[3:5, ::7]
        array = f(torch.full((600, 600), 2.0)).numpy()
        for value in (3.0, 4.0):
            f(torch.full((600, 600), value))
        assert (view == 2).all()
        assert (array == 4).all()


def _frames(bound: Bound) -> list[Any]:
    return list(bound.frames)


class TestEmptyTensors:
    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
    def test_externs_on_empty_intermediates(self, shape: tuple[int, int]):
        def f(x: Tensor) -> tuple[Tensor, ...]:
            y = (x + 1) * 2
            return y.cumsum(0) + 1, (y @ y.T).sum(), y.T @ y

        x = torch.randn(shape)
        torch.testing.assert_close(compiled(f)(x), f(x))

    def test_a_size_that_becomes_nothing(self):
        def f(x: Tensor) -> tuple[Tensor, ...]:
            return (x + 1).cumsum(0), x.sum(0), x.softmax(-1)

        call = compiled(f, dynamic=True)
        for rows in (4, 7, 0, 3, 1, 0):
            x = torch.randn(rows, 6)
            torch.testing.assert_close(call(x), f(x))


class TestFailures:
    """Only strict mode shows what goes wrong inside, and then with the user's own line."""

    @staticmethod
    def user_function(x: Tensor) -> Tensor:
        y = x * 2
        return y.softmax(-1)  # the line to blame

    def test_an_unknown_option(self):
        with pytest.raises(OptionError, match="did you mean 'strict'"):
            compiled(self.user_function, strikt=True)(torch.randn(3, 4))

    def test_a_bad_value(self):
        with pytest.raises(OptionError, match="threads"):
            compiled(self.user_function, threads=0)(torch.randn(3, 4))

    @pytest.mark.parametrize(
        "target",
        [
            "deepcompile.passes.lowering.arithmetic._mul",
            "deepcompile.passes.lowering.builder.Builder.apply",
            "deepcompile.passes.fuse_rows.rewrite._merge_all",
            "deepcompile.codegen.cpp_program.emit_kernel",
            "deepcompile.codegen.cpp_values.Values._apply",
            "deepcompile.backend.make_program",
            "deepcompile.backend.build",
            "deepcompile.backend.Program",
        ],
    )
    @pytest.mark.parametrize("training", [False, True])
    def test_a_part_that_raises(self, monkeypatch: pytest.MonkeyPatch, target: str, training: bool):
        def broken(*args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError("made to fail")

        if target.endswith("arithmetic._mul"):
            from deepcompile.passes.lowering.rules import RULES

            monkeypatch.setitem(RULES, torch.ops.aten.mul.Tensor, broken)
        else:
            monkeypatch.setattr(target, broken)
        x = torch.randn(3, 40, requires_grad=training)
        with backend.recording() as record:
            found = compiled(self.user_function)(x)
            if training:
                found.square().sum().backward()
        torch.testing.assert_close(found, self.user_function(x))
        assert any(event == "fallback" for event, _ in record.events) or any(
            "made to fail" in str(fields) for _, fields in record.events
        )
        torch._dynamo.reset()
        with pytest.raises(CompileError, match="made to fail") as caught:
            compiled(self.user_function, strict=True)(x)
        assert "torch/_dynamo" not in str(caught.value)

    def test_strict_names_the_line_of_the_user(self, monkeypatch: pytest.MonkeyPatch):
        from deepcompile.passes.lowering.rules import RULES

        def broken(*args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError("made to fail")

        monkeypatch.setitem(RULES, torch.ops.aten.mul.Tensor, broken)
        with pytest.raises(CompileError) as caught:
            compiled(self.user_function, strict=True)(torch.randn(3, 4))
        assert "y = x * 2" in str(caught.value)
        assert "test_program.py" in str(caught.value)

    def test_an_error_of_the_users_own_data_is_eagers(self):
        def f(x: Tensor, i: Tensor) -> Tensor:
            return F.embedding(i, x) + 1

        with pytest.raises(IndexError, match="out of range"):
            compiled(f)(torch.randn(5, 6), torch.tensor([1, 7]))

    def test_after_an_error_the_function_works_again(self):
        def f(x: Tensor, i: Tensor) -> Tensor:
            return (F.embedding(i, x) + 1).cumsum(0)

        call, x = compiled(f), torch.randn(5, 6)
        for _ in range(3):
            with pytest.raises(IndexError):
                call(x, torch.tensor([1, 7]))
            i = torch.tensor([1, 4])
            torch.testing.assert_close(call(x, i), f(x, i))
