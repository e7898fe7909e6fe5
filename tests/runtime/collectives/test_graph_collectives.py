"""Fingerprints read from FX graphs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed._functional_collectives
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from deepcompile.ir.origins import user_line
from deepcompile.passes.partition.marked import CommonInput
from deepcompile.runtime.collectives.graph_collectives import fingerprint_of

c10d = torch.ops._c10d_functional
GROUPS = {"0": (0, 1, 2, 3), "9": (1, 3)}


def read(function, *inputs, dynamic=False, **kwargs):
    mode = FakeTensorMode(shape_env=ShapeEnv() if dynamic else None, static_shapes=not dynamic)
    with mode:
        fakes = [mode.from_tensor(tensor) for tensor in inputs]
        graph = make_fx(function, tracing_mode="real")(*fakes)
    return fingerprint_of(graph, "g", "v1", GROUPS.__getitem__, **kwargs)


def test_what_ranks_are_given_alike_comes_first():
    def function(x):
        return c10d.wait_tensor(c10d.all_reduce(x, "sum", "9"))

    given = [
        CommonInput("9", "i64", "4, 8", "tokens in model.py:3"), CommonInput("9", "f32", "2", "")
    ]  # fmt: skip
    found = read(function, torch.ones(8), label_of=lambda node: "", common=given)
    assert [f"{entry} {entry.members}" for entry in found.entries] == [
        "input i64[4, 8] `tokens in model.py:3` (1, 3)",
        "input f32[2] (1, 3)",
        "all_reduce(sum) f32[8] (1, 3)",
    ]


def test_operations_in_order_with_groups_by_members():
    def function(x):
        x = c10d.wait_tensor(c10d.all_reduce(x, "sum", "0"))
        y = c10d.all_gather_into_tensor(x.to(torch.bfloat16), 2, "9")
        z = c10d.reduce_scatter_tensor(c10d.wait_tensor(y), "avg", 2, "9")
        b = c10d.broadcast(c10d.wait_tensor(z), 1, "9")
        pair = c10d.all_reduce_coalesced([x, x[0]], "max", "0")
        return c10d.wait_tensor(b), c10d.wait_tensor(pair[0]), c10d.wait_tensor(pair[1])

    found = read(function, torch.ones(8, 16), label_of=lambda node: "")
    assert [f"{entry} {entry.members}" for entry in found.entries] == [
        "all_reduce(sum) f32[8, 16] (0, 1, 2, 3)",
        "all_gather_into_tensor bf16[8, 16] (1, 3)",
        "reduce_scatter_tensor(avg) bf16[16, 16] (1, 3)",
        "broadcast(from 1) bf16[8, 16] (1, 3)",
        "all_reduce_coalesced(max) f32[8, 16] f32[16] (0, 1, 2, 3)",
    ]
    assert (found.graph, found.plan) == ("g", "v1")


def test_a_form_that_works_in_place_is_the_same_collective():
    x = torch.ones(4)
    plain = read(lambda x: c10d.all_reduce(x, "sum", "0"), x, label_of=lambda node: "")
    in_place = read(lambda x: c10d.all_reduce_(x, "sum", "0"), x, label_of=lambda node: "")
    assert plain == in_place
    assert len(plain.entries) == 1


@pytest.mark.parametrize(
    ("received", "sent", "shape"),
    [([4, 4], [4, 4], "8, 16"), ([2, 5], [4, 4], "*, 16"), ([4, 4], [3, 5], "*, 16")],
)
def test_uneven_exchanges_have_a_size_of_their_own_on_each_rank(received, sent, shape):
    found = read(lambda x: c10d.all_to_all_single(x, received, sent, "9"), torch.ones(8, 16))
    assert found.entries[0].shape == shape


def test_symbolic_sizes_stay_symbols():
    found = read(lambda x: c10d.all_reduce(x * 2, "sum", "0"), torch.ones(6, 16), dynamic=True)
    (part,) = found.among((0, 1, 2, 3)).entries
    assert part.shape == "n0, n1"


def test_nodes_carry_the_users_line_without_its_folder():
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    assert user_line(node) == ""
    node.meta["stack_trace"] = 'File "/home/ada/run/model.py", line 12, in forward\n    y = f(x)'
    assert user_line(node) == "model.py:12"


def test_graphs_without_types_are_refused():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(c10d.all_reduce.default, (x, "sum", "0")))
    module = torch.fx.GraphModule({}, graph)
    with pytest.raises(ValueError, match="input x of a collective has no type"):
        fingerprint_of(module, "g", "", GROUPS.__getitem__)


def test_graphs_without_collectives():
    assert read(lambda x: x + 1, torch.ones(2)).entries == ()
