"""Agreement at the first run; ranks are threads over one store, runs are recorded."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from deepcompile.errors import RankError
from deepcompile.runtime.collectives.agreement import agreed
from deepcompile.runtime.collectives.fingerprint import CollectiveEntry, Fingerprint

SOON = 0.3
ALL = (0, 1, 2, 3)


def entry(members=ALL, op="all_reduce", shape="8, 16", label="", dtype="f32", reduce_op="sum"):
    return CollectiveEntry(op, reduce_op, dtype, shape, members, label)


def graph(name, *entries, plan="v1"):
    return Fingerprint(name, plan, entries)


class World:
    """Runs a program of graphs on each rank; `programs[rank]` are graphs in their order."""

    def __init__(self, timeout=5.0):
        self.store = dist.HashStore()
        self.timeout = timeout

    def run(self, programs):
        """What each rank ended with: the names of what it ran, or its error."""

        def work(rank, program):
            ran = []
            compiled = {}
            try:
                for fingerprint in program:
                    if callable(fingerprint):
                        fingerprint()
                        continue
                    if fingerprint not in compiled:
                        compiled[fingerprint] = agreed(
                            ran.append, fingerprint, self.store, rank, self.timeout
                        )
                    compiled[fingerprint](fingerprint.graph)
            except RankError as error:
                return str(error)
            return ran

        with ThreadPoolExecutor(len(programs)) as threads:
            futures = {r: threads.submit(work, r, program) for r, program in programs.items()}
            return {rank: future.result(timeout=30) for rank, future in futures.items()}


def test_equal_graphs_run():
    step, update = graph("step", entry()), graph("update", entry(shape="4"))
    program = [step, update, step, step, update]
    names = ["step", "update", "step", "step", "update"]
    assert World().run(dict.fromkeys(ALL, program)) == dict.fromkeys(ALL, names)


DIFFERENT = {
    "dtype": (entry(dtype="bf16"), "f32[8, 16] against all_reduce(sum) bf16[8, 16]"),
    "shape": (entry(shape="16, 8"), "f32[8, 16] against all_reduce(sum) f32[16, 8]"),
    "reduction": (entry(reduce_op="max"), "against all_reduce(max) f32[8, 16]"),
    "op": (
        entry(op="reduce_scatter_tensor"),
        "all_reduce(sum) f32[8, 16] against reduce_scatter_tensor(sum) f32[8, 16]",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_rank_that_differs_is_named_on_all_ranks(kind):
    other, text = DIFFERENT[kind]
    mine, theirs = graph("X", entry(shape="4"), entry()), graph("Y", entry(shape="4"), other)
    outcomes = World().run({0: [mine], 1: [mine], 2: [theirs], 3: [mine]})
    assert len(set(outcomes.values())) == 1
    for line in (
        "collectives that ranks 0-3 share differ: ranks 0,1,3 run graph 'X'",
        "rank 2 runs graph 'Y': collective 2:",
        text,
    ):
        assert line in outcomes[0]


def test_swapped_collectives_of_one_shape_are_told_apart_by_label():
    up, down = entry(label="layers.4.up"), entry(label="layers.4.down")
    outcomes = World().run({**{r: [graph("X", up, down)] for r in (0, 1, 2)}, 3: [
        graph("X", down, up)
    ]})  # fmt: skip
    assert "collective 1: all_reduce(sum) f32[8, 16] `layers.4.up` against" in outcomes[3]


def test_graphs_first_run_in_another_order():
    first, second = graph("first", entry(shape="1")), graph("second", entry(shape="2"))
    programs = {rank: [first, second] for rank in (0, 1, 2)} | {3: [second, first]}
    outcomes = World().run(programs)
    assert all("ranks 0-2 run graph 'first'\nrank 3 runs graph 'second'" in o
               for o in outcomes.values())  # fmt: skip


def test_another_plan():
    outcomes = World().run(
        {0: [graph("X", entry((0, 1)))], 1: [graph("X", entry((0, 1)), plan="v2")]}
    )
    assert "plan 'v1' against plan 'v2'" in outcomes[0]


def test_a_missing_rank_is_named_in_time():
    earlier, step = graph("earlier", entry((0, 2))), graph("step", entry())
    start = time.monotonic()
    outcomes = World(SOON).run({0: [earlier, step], 1: [step], 2: [earlier], 3: [step]})
    assert time.monotonic() - start < 10 * SOON
    assert outcomes[2] == ["earlier"]
    assert "rank 0, graph 'step': rank 2 has not come" in outcomes[0]
    assert any("rank 2 has not come in 0.3 s" in outcomes[rank] for rank in (0, 1, 3))
    assert "Here: ranks 0,1,3." in outcomes[0]
    assert "rank 2 was last seen at the first run of graph 'earlier' (ranks 0,2)" in outcomes[0]


def test_a_rank_that_recompiles_alone_to_other_collectives():
    step, longer = graph("step", entry((0, 1))), graph("longer", entry((0, 1), shape="9, 16"))
    outcomes = World(SOON).run({0: [step, step], 1: [step, longer]})
    assert outcomes[0] == ["step", "step"]
    assert "graph 'longer': rank 0 has not come" in outcomes[1]


def test_ranks_of_a_data_axis_may_recompile_alone():
    """Rank 0-1 and 2-3 share tensors, 0-2 and 1-3 gradients; batches differ in length."""

    def steps(rank, length):
        tensor, data = ((0, 1), (2, 3))[rank // 2], ((0, 2), (1, 3))[rank % 2]
        activations = entry(tensor, shape=f"{length}, 16")
        return graph(f"length {length}", activations, entry(data, label="weight"))

    lengths = {0: [8, 8, 8, 4], 1: [8, 8, 8, 4], 2: [6, 7, 6, 8], 3: [6, 7, 6, 8]}
    outcomes = World().run({r: [steps(r, length) for length in lengths[r]] for r in ALL})
    assert outcomes == {r: [f"length {length}" for length in lengths[r]] for r in ALL}


def test_a_data_axis_still_finds_gradients_that_differ():
    mine = graph("mine", entry((0, 1), shape="8"), entry((0, 2), label="weight"))
    beside = graph("mine", entry((0, 1), shape="8"))
    theirs = graph("theirs", entry((0, 2), label="bias"))
    outcomes = World(SOON).run({0: [mine], 1: [beside], 2: [theirs]})
    assert "ranks 0,2 share differ" in outcomes[0]
    assert "ranks 0,2 share differ" in outcomes[2]


def test_groups_in_another_order_make_no_deadlock():
    first, second = entry((0, 1)), entry((0, 1, 2))
    outcomes = World().run({
        0: [graph("a", first, second)], 1: [graph("b", second, first)], 2: [graph("c", second)]
    })  # fmt: skip
    assert outcomes == {0: ["a"], 1: ["b"], 2: ["c"]}


def test_slow_compiles_are_waited_for():
    step = graph("step", entry((0, 1)))
    outcomes = World().run({0: [step], 1: [lambda: time.sleep(0.4), step]})
    assert outcomes == {0: ["step"], 1: ["step"]}


def test_a_rank_that_has_failed_is_not_waited_for():
    """Rank 1 differs from rank 2; rank 0 waits for rank 1 elsewhere and learns of it."""
    start = time.monotonic()
    outcomes = World(20.0).run({
        0: [graph("later", entry((0, 1)))],
        1: [graph("a", entry((1, 2), shape="1")), graph("later", entry((0, 1)))],
        2: [graph("b", entry((1, 2), shape="2"))],
    })  # fmt: skip
    assert time.monotonic() - start < 10
    assert "rank 1 has ended with: collectives that ranks 1,2 share differ" in outcomes[0]


def test_the_error_comes_again_without_a_wait():
    run = agreed([].append, graph("step", entry((0, 1))), dist.HashStore(), 0, SOON)
    with pytest.raises(RankError, match="rank 1 has not come") as first:
        run(None)
    start = time.monotonic()
    with pytest.raises(RankError, match="rank 1 has not come") as second:
        run(None)
    assert time.monotonic() - start < SOON / 2
    assert str(first.value) == str(second.value)


def test_graphs_of_one_rank_are_returned_as_they_are():
    def run(x):
        return x

    store = dist.HashStore()
    assert agreed(run, graph("g"), store, 0) is run
    assert agreed(run, graph("g", entry((0,))), store, 0) is run
    assert store.num_keys() == 0


def test_the_boxed_convention_is_kept():
    def boxed(inputs):
        value = inputs.pop()
        return [value, len(inputs)]

    def plain(a, b):
        return a + b

    boxed._boxed_call = True
    store = dist.HashStore()
    boxed_runs = [agreed(boxed, graph("g", entry((0, 1))), store, r, 5.0) for r in (0, 1)]
    plain_runs = [agreed(plain, graph("h", entry((0, 1), shape="1")), store, r) for r in (0, 1)]
    assert all(run._boxed_call for run in boxed_runs)
    assert not any(hasattr(run, "_boxed_call") for run in plain_runs)
    lists = [["only"], ["only"]]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda r: boxed_runs[r](lists[r]), (0, 1))) == [["only", 0]] * 2
        assert list(threads.map(lambda r: plain_runs[r](1, 2), (0, 1))) == [3, 3]
    assert lists == [[], []]


def test_later_runs_ask_the_store_nothing():
    store = dist.HashStore()
    runs = [agreed(lambda x: x, graph("g", entry((0, 1))), store, rank) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda run: run(1), runs))
    keys = store.num_keys()
    for run in runs:
        run._agreement._store = None
        assert run(2) == 2
    assert store.num_keys() == keys


def test_a_failed_collective_names_the_graph_and_what_others_said():
    def failing(x):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:2")

    both = tuple(
        graph("backward 1", *(entry((0, 1), label=f"w{i}") for i in range(5))) for _ in "ab"
    )
    store = dist.HashStore()
    runs = [agreed(failing, both[rank], store, rank) for rank in (0, 1)]
    errors = {}
    turn = threading.Event()

    def work(rank):
        try:
            runs[rank]._agree()
            if rank == 1:
                turn.wait(10)
            runs[rank](None)
        except RankError as error:
            errors[rank] = error
            turn.set()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, (0, 1)))
    assert "rank 0, graph 'backward 1': a collective failed: [gloo" in str(errors[0])
    assert "  1: all_reduce(sum) f32[8, 16] `w0`" in str(errors[0])
    assert "2 more, the last all_reduce(sum) f32[8, 16] `w4`" in str(errors[0])
    assert "no other rank has left word" in str(errors[0])
    assert "rank 0 has ended with: rank 0, graph 'backward 1'" in str(errors[1])
    assert isinstance(errors[1].__cause__, RuntimeError)


def test_other_errors_of_the_graph_pass():
    def failing(x):
        raise RuntimeError("shape mismatch")

    store = dist.HashStore()
    runs = [agreed(failing, graph("g", entry((0, 1))), store, rank) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(run, None) for run in runs]
    for future in futures:
        with pytest.raises(RuntimeError, match="shape mismatch"):
            future.result()
