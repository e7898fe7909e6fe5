"""Memory of collectives: nothing else uses it between their launch and their wait."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from deepcompile.codegen import lifetimes
from deepcompile.codegen.cpp_program import emit_program
from deepcompile.codegen.program import make_program
from deepcompile.codegen.steps import ExternStep, LifetimeStep, ProgramSpec, tensor_refs
from deepcompile.codegen.triton_program import emit_triton_program
from deepcompile.cost.gemm import GemmChoice
from deepcompile.ir.collectives import is_launch, is_wait
from deepcompile.options import Options
from deepcompile.passes.canonicalise import Canonicalise
from deepcompile.passes.fuse_rows import FuseRows
from deepcompile.runtime.build import build
from deepcompile.runtime.program import Program
from tests.passes.collective_graphs import SHAPE, Building
from tests.passes.conftest import apply_pass

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifetime steps and results over operands for tensors of test size too."""
    monkeypatch.setattr(lifetimes, "LARGE", 1)


def gathered_while_computing() -> GraphModule:
    """The input of a gather dies at its launch; its memory has the size of what comes next."""
    add = Building(1)
    x = add.inputs[0]
    sent = add(aten.exp.default, x)
    launched = add(c10d.all_gather_into_tensor.default, sent, 2, "0")
    here = x
    for _ in range(4):  # products are never fused, so each has memory of its own
        here = add(aten.mm.default, here, add(aten.permute.default, x, [1, 0]))
        here = add(aten.sin.default, add(aten.mm.default, here, x))
    whole = add(c10d.wait_tensor.default, launched)
    joined = add(aten.add.Tensor, here, add(aten.slice.Tensor, whole, 0, 0, 16))
    return add.done(add(aten.cos.default, joined))


def reduced_over_a_view() -> GraphModule:
    """What is sent is a view of an intermediate, and the result is handed out."""
    add = Building(1)
    x = add.inputs[0]
    sent = add(aten.view.default, add(aten.exp.default, x), [32, 24])
    launched = add(c10d.reduce_scatter_tensor.default, sent, "sum", 2, "0")
    here = add(aten.mm.default, add(aten.sin.default, x), add(aten.permute.default, x, [1, 0]))
    here = add(aten.mm.default, add(aten.cos.default, here), x)
    return add.done(add(c10d.wait_tensor.default, launched), add(aten.exp.default, here))


def several_at_once() -> GraphModule:
    """Coalesced, with results that are waited for at different times."""
    add = Building(2)
    sent = [add(aten.exp.default, x) for x in add.inputs]
    launched = add(c10d.all_gather_into_tensor_coalesced.default, sent, 2, "0")
    parts = [add(operator.getitem, launched, number) for number in range(2)]
    first = add(c10d.wait_tensor.default, parts[0])
    here = add(aten.sin.default, add.inputs[0])
    for _ in range(3):
        here = add(aten.mm.default, here, add(aten.permute.default, add.inputs[1], [1, 0]))
        here = add(aten.sin.default, add(aten.mm.default, here, add.inputs[1]))
    second = add(c10d.wait_tensor.default, parts[1])
    return add.done(
        add(aten.exp.default, first), add(aten.exp.default, second), add(aten.exp.default, here)
    )


def never_waited_for() -> GraphModule:
    """The wait is in a later graph."""
    add = Building(1)
    sent = add(aten.exp.default, add.inputs[0])
    launched = add(c10d.all_gather_into_tensor.default, sent, 2, "0")
    here = add(aten.mm.default, add.inputs[0], add(aten.permute.default, add.inputs[0], [1, 0]))
    return add.done(launched, add(aten.sin.default, here))


GRAPHS = [gathered_while_computing, reduced_over_a_view, several_at_once]


@pytest.fixture
def late() -> Iterator[list[tuple[Tensor, Callable[[], Tensor]]]]:
    """Collectives of a world of equal ranks that do nothing until they are waited for."""
    pending: list[tuple[Tensor, Callable[[], Tensor]]] = []

    def launched(result: Callable[[], Tensor]) -> Tensor:
        made = torch.full_like(result(), torch.nan)
        pending.append((made, result))
        return made

    def wait(value: Tensor) -> Tensor:
        for number, (made, result) in enumerate(pending):
            if made is value:
                value.copy_(result())
                del pending[number]
                break
        return value

    library = torch.library.Library("_c10d_functional", "IMPL")
    for name, function in {
        "wait_tensor": wait,
        "all_gather_into_tensor": lambda value, ranks, group: launched(
            lambda: torch.cat([value] * ranks)
        ),
        "all_gather_into_tensor_coalesced": lambda values, ranks, group: [
            launched(lambda value=value: torch.cat([value] * ranks)) for value in values
        ],
        "reduce_scatter_tensor": lambda value, kind, ranks, group: launched(
            lambda: ranks * value.chunk(ranks)[0]
        ),
        "broadcast": lambda value, source, group: launched(
            lambda: value.clone(memory_format=torch.contiguous_format)
        ),
    }.items():
        library.impl(name, function, "CPU")
    yield pending
    library._destroy()


def fused(graph: GraphModule) -> GraphModule:
    graph = apply_pass(Canonicalise(), graph).after
    return apply_pass(FuseRows(), graph).after


def run_in_cpp(spec: ProgramSpec, inputs: list[Tensor]) -> list[Tensor]:
    code = emit_program(spec)
    return Program(spec, code, build(code.source, Options(), ignore))(list(inputs))


def run_in_triton(spec: ProgramSpec, inputs: list[Tensor]) -> list[Tensor]:
    pytest.importorskip("triton")
    from deepcompile.runtime.triton_program import TritonRunner
    from tests.runtime.recording_driver import RecordingDriver

    code = emit_triton_program(spec, {}, None)
    runner = TritonRunner(spec, code, RecordingDriver(), Options(), None, ignore)
    return runner(list(inputs))


def ignore(*args: Any, **facts: Any) -> None:
    pass


@pytest.mark.parametrize("run", [run_in_cpp, run_in_triton])
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("make", GRAPHS)
def test_a_collective_that_works_until_its_wait_gives_the_same(
    make: Callable[[], GraphModule],
    follow: bool,
    run: Callable[..., list[Tensor]],
    late: list[Any],
) -> None:
    graph = make()
    torch.manual_seed(0)
    inputs = [torch.randn(SHAPE) * 0.1 for _ in graph.graph.find_nodes(op="placeholder")]
    expected = Interpreter(graph).run(*inputs)
    spec = make_program(fused(graph), GemmChoice(onednn=False), follow_lifetimes=follow)
    for _ in range(2):
        found = run(spec, inputs)
        assert not late
        for value, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", GRAPHS)
def test_nothing_is_let_go_of_before_the_wait(make: Callable[[], GraphModule]) -> None:
    spec = make_program(fused(make()), GemmChoice(onednn=False), follow_lifetimes=True)
    released: dict[int, int] = {}
    launches: list[tuple[set[int], set[int]]] = []
    waits: dict[int, int] = {}
    for number, step in enumerate(spec.steps):
        if isinstance(step, LifetimeStep):
            released |= dict.fromkeys(step.release, number)
        elif isinstance(step, ExternStep) and is_launch(step.target):
            sent = {ref.slot for ref in tensor_refs(step.args)}
            launches.append((sent, {slot for slot in step.results if slot is not None}))
        elif isinstance(step, ExternStep) and is_wait(step.target):
            waits |= dict.fromkeys((ref.slot for ref in tensor_refs(step.args)), number)
    assert launches
    assert released
    for sent, made in launches:
        until = max(waits[slot] for slot in made)
        assert all(released.get(slot, until + 1) > until for slot in sent | made)


@pytest.mark.parametrize("follow", [False, True])
def test_what_is_still_read_when_a_program_ends_is_in_no_shared_memory(follow: bool) -> None:
    spec = make_program(
        fused(never_waited_for()), GemmChoice(onednn=False), follow_lifetimes=follow
    )
    launch = next(s for s in spec.steps if isinstance(s, ExternStep) and is_launch(s.target))
    sent = spec.slots[tensor_refs(launch.args)[0].slot]
    assert sent.storage not in ("arena", "own")


def test_a_result_of_other_strides_than_traced_is_not_looked_at_before_the_wait(
    late: list[Any],
) -> None:
    """The real collective gives rows in order, whatever order they were traced in."""
    building = Building(1)
    sent = building(aten.permute.default, building(aten.exp.default, building.inputs[0]), [1, 0])
    launched = building(c10d.broadcast.default, sent, 0, "0")
    launched.meta["val"] = sent.meta["val"]
    whole = building(c10d.wait_tensor.default, launched)
    spec = make_program(fused(building.done(building(aten.sin.default, whole))))
    x = torch.randn(SHAPE)
    (found,) = run_in_cpp(spec, [x])
    torch.testing.assert_close(found, x.exp().t().sin())
