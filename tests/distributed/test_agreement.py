"""Two gloo ranks start, agree on compiled graphs, and find where they differ.

One pair of processes runs all cases, each in a process group of its own: an error ends a group.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

import deepcompile
from deepcompile.capture.aot import compile_through_aot, interpret
from deepcompile.errors import DeepCompileError
from deepcompile.runtime.collectives.agreement import agreed_in_world
from deepcompile.runtime.collectives.graph_collectives import fingerprint_of
from deepcompile.runtime.collectives.start import members_of

pytestmark = pytest.mark.distributed

RANKS = 2
WAIT = 20.0
SHORT_WAIT = 5.0  # still longer than a compile on a busy machine


def backend(gm, example_inputs, options):
    def compile_graph(graph, inputs, *, kind, static_input_idxs):
        fingerprint = fingerprint_of(graph, kind, "v1", members_of)
        return agreed_in_world(interpret(graph), fingerprint, timeout=options["wait"])

    return compile_through_aot(
        gm, example_inputs, compile_graph=compile_graph, run_joint_passes=lambda joint: joint
    )


def compiled(function, wait=WAIT):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=False, options={"wait": wait})


def mesh_that_does_not_fit(rank):
    deepcompile.runtime.init("dp=2,tp=4", device="cpu")


def meshes_that_differ(rank):
    deepcompile.runtime.init(("dp=2", "tp=2")[rank], device="cpu", timeout=20)


def mesh_with_names(rank):
    mesh = deepcompile.runtime.init({"dp": 1, "tp": 2}, device="cpu", timeout=20)
    value = torch.tensor(float(rank + 1))
    dist.all_reduce(value, group=mesh.get_group("tp"))
    return f"{mesh.mesh_dim_names} {value.item()} {mesh.get_local_rank('tp')}"


def start():
    return deepcompile.runtime.init("tp=2", device="cpu", timeout=20)


def equal_graphs(rank):
    mesh = start()

    @compiled
    def function(x, w):
        return funcol.all_reduce(x @ w, "sum", mesh).relu().sum()

    w = torch.full((4, 4), 0.5, requires_grad=True)
    for _ in range(2):
        loss = function(torch.full((2, 4), float(rank + 1)), w)
        loss.backward()
    return f"{loss.item()} {w.grad[0, 0].item()}"


def shapes_that_differ(rank):
    mesh = start()
    compiled(lambda x: funcol.all_reduce(x, "sum", mesh) * 2)(torch.ones(4 + rank, 3))


def types_that_differ(rank):
    mesh = start()
    x = torch.ones(4, dtype=(torch.float32, torch.int32)[rank])
    compiled(lambda x: funcol.all_reduce(x, "sum", mesh) * 2)(x)


def operations_that_differ(rank):
    mesh = start()
    reduction = ("sum", "max")[rank]
    compiled(lambda x: funcol.all_reduce(x, reduction, mesh) * 2)(torch.ones(4))


def orders_that_differ(rank):
    mesh = start()

    def first(x):
        return funcol.all_reduce(x, "sum", mesh)

    def second(x):
        return funcol.all_reduce(x * 3, "sum", mesh)

    one, other = (first, second) if rank == 0 else (second, first)
    compiled(lambda x: one(x) + other(x))(torch.ones(4))


def batches_of_other_length_without_other_collectives(rank):
    """Each rank compiles when it must; what the ranks send stays the same."""
    mesh = start()

    @compiled
    def function(x, w):
        return funcol.all_reduce(x.sum(0) @ w, "sum", mesh)

    lengths = ((3, 3, 5, 3), (4, 6, 6, 7))[rank]
    return str([function(torch.ones(n, 2), torch.ones(2, 1)).item() for n in lengths])


def one_rank_recompiles(rank):
    """Rank 1 waits for rank 0, which is in a collective of the graph it has; rank 1 gives up."""
    mesh = start()
    function = compiled(lambda x: funcol.all_reduce(x, "sum", mesh) * 2, SHORT_WAIT)
    function(torch.ones(4))
    function(torch.ones(4 + rank))


CASES = {
    case.__name__: case
    for case in (
        mesh_that_does_not_fit,
        meshes_that_differ,
        mesh_with_names,
        equal_graphs,
        shapes_that_differ,
        types_that_differ,
        operations_that_differ,
        orders_that_differ,
        batches_of_other_length_without_other_collectives,
        one_rank_recompiles,  # ends the processes, so the last one
    )
}


def work(rank: int, port: int, results: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is in the process that starts these
    }  # fmt: skip
    torch.set_num_threads(1)
    for name, case in CASES.items():
        started = time.monotonic()
        try:
            outcome = case(rank)
        except DeepCompileError as error:
            outcome = f"{type(error).__name__}: {error}"
        except Exception as error:
            outcome = f"unexpected {type(error).__name__}: {error}"
        results.put((name, rank, outcome, time.monotonic() - started))
        if name != list(CASES)[-1]:
            deepcompile.runtime.shutdown()
    os._exit(0)  # a process group whose other rank is gone may hang in its end


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[int, str]]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()  # writes at once, so that _exit loses nothing
    processes = [
        context.Process(target=work, args=(rank, store.port, results), daemon=True)
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 90
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        if process.is_alive():
            process.kill()
    found: dict[str, dict[int, str]] = {name: {} for name in CASES}
    while not results.empty():
        name, rank, outcome, seconds = results.get()
        found[name][rank] = str(outcome)
        assert seconds < 30, name
    return found


def test_a_mesh_that_does_not_fit(outcomes):
    for text in outcomes["mesh_that_does_not_fit"].values():
        assert text.startswith("MeshError: mesh 'dp=2,tp=4' has 8 ranks, but the world has 2")
        assert "nearest that works: 'dp=2,tp=1'" in text
        assert "torchrun --nproc-per-node=8" in text


def test_ranks_that_ask_for_different_meshes(outcomes):
    text = (
        "MeshError: ranks were started for different meshes: rank 0 for 'dp=2'; rank 1 for 'tp=2'"
    )
    assert outcomes["meshes_that_differ"] == {0: text, 1: text}


def test_a_mesh_with_names(outcomes):
    names = "('dp', 'tp') 3.0"
    assert outcomes["mesh_with_names"] == {0: f"{names} 0", 1: f"{names} 1"}


def test_equal_graphs_run(outcomes):
    # Loss: 2 rows x 4 columns of (1 + 2) * 4 * 0.5. Gradient: 2 rows of x, for the losses
    # of 2 ranks, in 2 steps.
    assert outcomes["equal_graphs"] == {0: "48.0 8.0", 1: "48.0 16.0"}


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("shapes_that_differ", "all_reduce(sum) f32[4, 3] {0} against all_reduce(sum) f32[5, 3]"),
        ("types_that_differ", "all_reduce(sum) f32[4] {0} against all_reduce(sum) i32[4] {0}"),
        ("operations_that_differ", "all_reduce(sum) f32[4] {0} against all_reduce(max) f32[4]"),
        ("orders_that_differ", "all_reduce(sum) f32[4] {0} against all_reduce(sum) f32[4] {1}"),
    ],
)
def test_differences_are_errors_on_both_ranks(outcomes, case, text):
    first, second = outcomes[case].values()
    assert first == second
    assert first.startswith(
        "RankError: collectives that ranks 0,1 share differ: rank 0 runs graph 'inference'\n"
        "rank 1 runs graph 'inference': collective 1: "
    )
    lines = [word for word in first.split() if word.startswith("`test_agreement.py:")]
    assert text.format(lines[0], lines[-1]) in first


def test_ranks_may_recompile_alone_while_collectives_stay(outcomes):
    expected = str([14.0, 18.0, 22.0, 20.0])
    case = outcomes["batches_of_other_length_without_other_collectives"]
    assert case == {0: expected, 1: expected}


def test_a_rank_that_recompiles_alone_is_an_error_on_both(outcomes):
    case = outcomes["one_rank_recompiles"]
    missing = "rank 1, graph 'inference': rank 0 has not come in 5 s to collectives"
    assert case[1].startswith(f"RankError: {missing}")
    assert case[0].startswith("RankError: rank 0, graph 'inference': a collective failed: ")
    assert "all_reduce(sum) f32[4] `test_agreement.py:" in case[0]
    assert f"rank 1 has ended with: {missing}" in case[0]
