"""Fuse-rows: one kernel where one is enough, none where none may be, and the same values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from deepcompile.ir.graph_parser import parse_graph
from deepcompile.ir.graph_printer import print_graph
from deepcompile.ir.kernel_op import KernelOp
from deepcompile.ir.verify import verify_kernel
from deepcompile.options import Options
from deepcompile.passes.canonicalise import Canonicalise
from deepcompile.passes.fuse_rows import FuseRows

GOLDEN = sorted((Path(__file__).parent / "golden" / "fuse_rows").glob("*.txt"))


def kernels(graph):
    """The kernels that the graph calls, each verified."""
    found = [node.target for node in graph.graph.nodes if isinstance(node.target, KernelOp)]
    for kernel in found:
        verify_kernel(kernel.nest)
    return found


def extern_ops(graph):
    """What is left to ATen, views not counted."""
    return [
        str(node.target).removeprefix("aten.")
        for node in graph.graph.nodes
        if node.op == "call_function"
        and not isinstance(node.target, KernelOp)
        and not getattr(node.target, "is_view", False)
        and "getitem" not in str(node.target)
    ]


def parse(text):
    """The graph with fake values computed anew: text has no offsets of views, kernels need them."""
    graph = parse_graph(text)
    given = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    mode = next(value.fake_mode for value in given if isinstance(value, torch.Tensor))
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*given)
    for node in graph.graph.nodes:
        node.meta = {"val": node.meta["val"]} if node.op != "output" else {}
    return graph


def graph_of(body):
    return parse("graph {\n" + body.strip("\n") + "\n}\n")


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_golden(file, check_golden, apply_pass, assert_same_bits):
    def transform(text):
        applied = apply_pass(FuseRows(), parse(text))
        assert_same_bits(applied.before, applied.after, exact=False)
        return print_graph(applied.after)

    check_golden(file, transform)


# ------------------------------------------------------------------------ one kernel each way


class Norm(nn.Module):
    def __init__(self, kind, width):
        super().__init__()
        self.norm = kind(width)
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, -1, 1)

    def forward(self, x):
        return self.norm(x)


ROWS = {
    "softmax": (lambda width: nn.Softmax(-1), False),
    "log-softmax": (lambda width: nn.LogSoftmax(-1), False),
    "layer-norm": (lambda width: Norm(nn.LayerNorm, width), False),
    "rms-norm": (lambda width: Norm(nn.RMSNorm, width), False),
    "cross-entropy": (lambda width: nn.CrossEntropyLoss(), True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_op_is_one_kernel_each_way(name, dynamic, dtype, capture, assert_same_bits):
    rows, width = 40, 12
    make, classifies = ROWS[name]
    model = make(width).to(dtype)
    recorded = capture(FuseRows(), joint=Canonicalise())
    x = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    arguments = (x, torch.randint(0, width, (rows,))) if classifies else (x,)
    y = recorded.compile(model, dynamic=dynamic)(*arguments)
    weights = torch.randn_like(y)
    actual = torch.autograd.grad(y, [x, *model.parameters()], weights)

    expected = model(*arguments)
    tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(y, expected, **tolerance)
    reference = torch.autograd.grad(expected, [x, *model.parameters()], weights)
    scale = tolerance if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.2}
    torch.testing.assert_close(actual, reference, **scale)
    for kind in ("forward", "backward"):
        (applied,) = recorded.by_kind(kind)
        assert len(kernels(applied.after)) == 1, print_graph(applied.after)
        assert extern_ops(applied.after) == []


def test_no_edge_is_called_rejected_when_everything_is_one_kernel(capture):
    recorded = capture(FuseRows(), joint=Canonicalise())
    recorded.compile(nn.Softmax(-1))(torch.randn(40, 12, requires_grad=True)).sum().backward()
    for kind in ("forward", "backward"):
        (applied,) = recorded.by_kind(kind)
        assert len(kernels(applied.after)) == 1
        assert events_of(applied, "fusion-rejected") == []


PROGRAMS = {
    "chain": lambda x, y: (torch.tanh(x * 2 + y).relu() * x,),
    "broadcast": lambda x, y: (x * y[:, :1] + y[:1],),
    "two outputs of one chain": lambda x, y: (x.exp() + y, x.exp().sum(-1)),
    "sum down the rows": lambda x, y: ((x * y).sum(0),),
    "everything into one number": lambda x, y: ((x - y).square().mean(),),
    "total read by the rows": lambda x, y: (x / (x * x).sum().sqrt() + y,),
    "reduction of a reduction": lambda x, y: (x.softmax(-1).sum(0).softmax(-1) * y,),
    "transposed reader": lambda x, y: (x.exp().t() @ y.exp(), x.exp().t().contiguous() * 2),
    "halves swapped": lambda x, y: (torch.cat((-x[:, 6:], x[:, :6]), -1) * y,),
    "matrix product between": lambda x, y: (torch.relu(x @ y.exp().t()).softmax(-1) + 1,),
    "argmax": lambda x, y: (x.argmax(-1), x.amax(-1)),
    "gather": lambda x, y: (x.exp().gather(1, y.argmax(-1, keepdim=True)),),
    "statistics": lambda x, y: (*torch.var_mean(x * y, -1), x.logsumexp(-1)),
    "masked": lambda x, y: (torch.where(x > y, x, -torch.inf).softmax(-1),),
    "nothing to do": lambda x, y: (x @ y.t(),),
    "views alone": lambda x, y: (x.view(-1)[3:], y.t()),
    "one value twice": lambda x, y: (x.exp().view(-1), x.exp()),
    "integers": lambda x, y: ((x > 0).long().cumsum(0) * 2 + (y > 0).long(),),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_fused_graphs_mean_the_same(name, dynamic, capture, apply_pass, assert_same_bits):
    recorded = capture(FuseRows())
    x, y = torch.randn(35, 12), torch.randn(35, 12)
    actual = recorded.compile(PROGRAMS[name], dynamic=dynamic)(x, y)
    torch.testing.assert_close(actual, PROGRAMS[name](x, y))
    (applied,) = recorded.applied
    assert_same_bits(applied.before, applied.after, exact=False)
    again = apply_pass(FuseRows(), applied.after)
    assert again.after is applied.after
    assert not again.result.changed
    assert len(kernels(applied.after)) == applied.result.stats.get("kernels", 0)


def test_a_training_graph_means_the_same(capture, assert_same_bits):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return F.mse_loss(x + self.down(F.gelu(self.up(self.norm(x)))), x.flip(0))

    recorded = capture(FuseRows(), joint=Canonicalise())
    recorded.compile(Block())(torch.randn(33, 8)).backward()
    for kind in ("forward", "backward"):
        (applied,) = recorded.by_kind(kind)
        assert_same_bits(applied.before, applied.after, exact=False)
        assert set(extern_ops(applied.after)) <= {"addmm.default", "mm.default", "flip.default"}


# ------------------------------------------------------------------------------- must not fire


@pytest.mark.parametrize(
    "call",
    [
        "f32[4, 4] = aten.mm.default(%x, %x)",
        "f32[4, 4] = aten.cumsum.default(%x, 0)",
        "f32[4, 4]{1, 4} = aten.t.default(%x)",
        "f32[16] = aten.view.default(%x, [16])",
        "f32[4, 4] = aten.randn.default([4, 4])",
    ],
)
def test_leaves_alone_what_is_no_row_program(call, apply_pass):
    graph = graph_of(f"""
      %x : f32[4, 4] = placeholder
      %y : {call}
      return (%y,)""")
    applied = apply_pass(FuseRows(), graph)
    assert applied.after is graph
    assert not applied.result.changed


def test_does_not_fuse_over_a_matrix_product(apply_pass, assert_same_bits):
    applied = apply_pass(
        FuseRows(),
        graph_of("""
          %x : f32[32, 32] = placeholder
          %a : f32[32, 32] = aten.exp.default(%x)
          %m : f32[32, 32] = aten.mm.default(%a, %x)
          %b : f32[32, 32] = aten.add.Tensor(%a, %m)
          return (%b,)"""),
    )
    assert len(kernels(applied.after)) == 2
    assert extern_ops(applied.after) == ["mm.default"]
    assert_same_bits(applied.before, applied.after, exact=False)
    (rejected,) = [fields for event, fields in applied.events if event == "fusion-rejected"]
    assert (rejected["producer"], rejected["consumer"]) == ("a", "b")
    assert "path" in rejected["reason"]


def test_a_write_is_fused(apply_pass, assert_same_bits):
    applied = apply_pass(
        FuseRows(),
        graph_of("""
          %x : f32[32, 4] = placeholder
          %a : f32[32, 4] = aten.mul.Tensor(%x, 2.0)
          %m : f32[32, 4] = aten.copy_.default(%x, %a)
          return ()"""),
    )
    assert len(kernels(applied.after)) == 1
    assert_same_bits(applied.before, applied.after, exact=False)


def test_does_not_move_a_read_behind_a_write(apply_pass, assert_same_bits):
    applied = apply_pass(
        FuseRows(),
        graph_of("""
          %x : f32[32, 4] = placeholder
          %y : f32[32, 4] = placeholder
          %a : f32[32, 4] = aten.mul.Tensor(%x, 2.0)
          %b : f32[32, 4] = aten.sub.Tensor(%x, %y)
          %m : f32[32, 4] = aten.copy_.default(%x, %a)
          %n : f32[32, 4] = aten.copy_.default(%y, %b)
          return (%b,)"""),
    )
    assert_same_bits(applied.before, applied.after, exact=False)


def test_swapped_inputs_are_swapped(apply_pass, assert_same_bits):
    applied = apply_pass(
        FuseRows(),
        graph_of("""
          %x : f32[8, 4] = placeholder
          %y : f32[8, 4] = placeholder
          %a : f32[8, 4] = aten.clone.default(%x)
          %m : f32[8, 4] = aten.copy_.default(%x, %y)
          %n : f32[8, 4] = aten.copy_.default(%y, %a)
          return ()"""),
    )
    assert_same_bits(applied.before, applied.after, exact=False)


# ------------------------------------------------------------------- reasons, limits, and leave

SOFTMAX = """
  %x : f32[40, 16] = placeholder
  %m : f32[40, 1] = aten.amax.default(%x, [-1], true)
  %s : f32[40, 16] = aten.sub.Tensor(%x, %m)
  %e : f32[40, 16] = aten.exp.default(%s)
  %t : f32[40, 1] = aten.sum.dim_IntList(%e, [-1], true)
  %y : f32[40, 16] = aten.div.Tensor(%e, %t)
  return (%y,)"""


def events_of(applied, event):
    return [fields for name, fields in applied.events if name == event]


def test_an_edge_inside_a_kernel_is_not_called_rejected(apply_pass):
    """The edge e -> y is first refused (t lies between them) and closed by a later merge."""
    applied = apply_pass(FuseRows(), graph_of(SOFTMAX))
    assert len(kernels(applied.after)) == 1
    assert events_of(applied, "fusion-rejected") == []
    assert applied.result.stats["rejected"] == 0


@pytest.mark.parametrize("option", [{"max_nodes": 2}, {"max_buffers": 3}])
def test_limits_are_kept_and_named(option, apply_pass, assert_same_bits):
    applied = apply_pass(FuseRows(**option), graph_of(SOFTMAX))
    found = kernels(applied.after)
    assert len(found) > 1 if "max_nodes" in option else found
    for kernel in found:
        assert len(kernel.origin.ops) <= option.get("max_nodes", 96)
        assert len(kernel.nest.buffers) <= option.get("max_buffers", 40)
    assert_same_bits(applied.before, applied.after, exact=False)
    if len(found) > 1:
        reasons = {fields["reason"] for fields in events_of(applied, "fusion-rejected")}
        assert any("at most" in reason for reason in reasons)


def test_every_kept_edge_has_a_reason(apply_pass):
    options = Options(disable=("fuse-rows/inline-group",))
    applied = apply_pass(FuseRows(max_nodes=1), graph_of(SOFTMAX), options=options)
    assert len(kernels(applied.after)) == 5
    edges = {
        (fields["producer"], fields["consumer"]) for fields in events_of(applied, "fusion-rejected")
    }
    assert {("m", "s"), ("s", "e"), ("e", "t"), ("e", "y"), ("t", "y")} <= edges
    assert all(fields["reason"] for fields in events_of(applied, "fusion-rejected"))


def test_fusing_nodes_can_be_disabled(apply_pass):
    options = Options(disable=("fuse-rows/fuse-node",))
    assert not apply_pass(FuseRows(), graph_of(SOFTMAX), options=options).result.changed


def test_fusing_edges_can_be_disabled(apply_pass, assert_same_bits):
    options = Options(disable=("fuse-rows/fuse-edge", "fuse-rows/inline-group"))
    applied = apply_pass(FuseRows(), graph_of(SOFTMAX), options=options)
    assert len(kernels(applied.after)) == 5
    assert_same_bits(applied.before, applied.after, exact=False)


def test_every_number_of_rewrites_gives_the_same_values(apply_pass, assert_same_bits):
    for limit in range(11):
        options = Options(rewrite_limit=("fuse-rows", limit))
        applied = apply_pass(FuseRows(), graph_of(SOFTMAX), options=options)
        assert applied.result.changed is (limit > 0)
        assert len(events_of(applied, "rewrite")) <= limit
        assert_same_bits(applied.before, applied.after, exact=False)


def test_the_input_graph_is_left_as_it_was(apply_pass):
    graph = graph_of(SOFTMAX)
    meta = {node.name: set(node.meta) for node in graph.graph.nodes}
    text = print_graph(graph)
    applied = apply_pass(FuseRows(), graph)
    assert applied.after is not graph
    assert print_graph(graph) == text
    assert {node.name: set(node.meta) for node in graph.graph.nodes} == meta


def test_kernels_know_their_lines(apply_pass):
    graph = graph_of(SOFTMAX)
    for number, node in enumerate(graph.graph.nodes):
        node.meta["origin"] = f"model.py:{number}"
    (kernel,) = kernels(apply_pass(FuseRows(), graph).after)
    assert set(kernel.origin.lines) == {f"model.py:{number}" for number in range(1, 6)}
    assert sorted(kernel.origin.ops) == [
        "amax.default", "div.Tensor", "exp.default", "sub.Tensor", "sum.dim_IntList",
    ]  # fmt: skip
