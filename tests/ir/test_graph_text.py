"""Graph text: what it looks like, and that real graphs survive the round trip."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import aot_module_simplified, make_boxed_func
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from deepcompile.errors import IRSyntaxError
from deepcompile.ir.graph_parser import UnboundKernel, parse_graph
from deepcompile.ir.graph_printer import print_graph
from deepcompile.ir.kernel_op import KernelOp, Origin
from deepcompile.ir.origins import origin_of
from deepcompile.ir.static_inputs import static_name


class Block(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.view(batch, tokens, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.dropout(torch.relu(self.norm(self.conv(x))), 0.1, self.training)
        y = nn.functional.max_pool2d(y, 2).to(memory_format=torch.channels_last)
        return nn.functional.log_softmax(self.head(y.mean((2, 3))), -1)


def captured(model: nn.Module, *inputs: Any, dynamic: bool = False) -> list[GraphModule]:
    """The forward and backward ATen graphs of one training step."""
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: Any) -> Any:
        def compiler(graph: GraphModule, _: Any) -> Any:
            graphs.append(graph)
            return make_boxed_func(graph.forward)

        return aot_module_simplified(gm, example_inputs, fw_compiler=compiler, bw_compiler=compiler)

    torch._dynamo.reset()
    result = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    result.sum().backward()
    return graphs


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], bool]] = {
    "gpt-block": (Block, lambda: torch.randn(2, 6, 16), False),
    "gpt-block-dynamic": (Block, lambda: torch.randn(3, 7, 16), True),
    "convolutions": (Convolutions, lambda: torch.randn(2, 3, 16, 16), False),
    "convolutions-dynamic": (Convolutions, lambda: torch.randn(3, 3, 16, 16), True),
}


@pytest.mark.parametrize("name", MODELS)
def test_captured_training_graphs_round_trip(name: str) -> None:
    model, make_input, dynamic = MODELS[name]
    graphs = captured(model(), make_input(), dynamic=dynamic)
    assert len(graphs) == 2
    for graph in graphs:
        text = print_graph(graph)
        again = parse_graph(text)
        assert print_graph(again) == text
        again.graph.lint()
        assert [(n.name, n.op, n.target) for n in again.graph.nodes] == [
            (n.name, n.op, n.target) for n in graph.graph.nodes
        ]
        assert ("symbols s" in text) == dynamic
        for old, new in zip(graph.graph.nodes, again.graph.nodes, strict=True):
            assert same_value(old.meta.get("val"), new.meta.get("val")), old.name


def same_value(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch._subclasses.FakeTensor)
            and (a.dtype, a.device, str(a.shape)) == (b.dtype, b.device, str(b.shape))
            and str(a.stride()) == str(b.stride())
        )
    if isinstance(a, torch.SymInt):
        return str(a) == str(b) and a.node.hint == b.node.hint
    return bool(a == b)


def test_parsed_graph_computes_the_same() -> None:
    graph = make_fx(lambda x, y: (torch.softmax(x @ y, -1).sum(0), x[1:, ::2]))(
        torch.randn(4, 6), torch.randn(6, 3)
    )
    inputs = torch.randn(4, 6), torch.randn(6, 3)
    expected, actual = graph(*inputs), parse_graph(print_graph(graph))(*inputs)
    for a, b in zip(expected, actual, strict=True):
        assert torch.equal(a, b)


def test_text_of_a_small_graph() -> None:
    graph = make_fx(lambda x: torch.sin(x.t()).to(torch.bfloat16) * 2.0, tracing_mode="fake")(
        torch.randn(2, 3)
    )
    assert print_graph(graph, origins=False) == (
        "graph {\n"
        "  %x_1 : f32[2, 3] = placeholder\n"
        "  %t : f32[3, 2]{1, 3} = aten.t.default(%x_1)\n"
        "  %sin : f32[3, 2]{1, 3} = aten.sin.default(%t)\n"
        "  %_to_copy : bf16[3, 2]{1, 3} = aten._to_copy.default(%sin, dtype=torch.bfloat16)\n"
        "  %mul : bf16[3, 2]{1, 3} = aten.mul.Tensor(%_to_copy, 2.0)\n"
        "  return %mul\n"
        "}\n"
    )


ARGUMENTS = [
    None, True, -3, 2.5, 1e-30, math.inf, -math.inf, "\"quoted\" # text", [1, [2, None]], (4,), (),
    torch.float8_e4m3fn, torch.strided, torch.channels_last, torch.device("cuda:1"), 1 - 2j,
    slice(None, 3, None), {"key": [1.0]}, ..., torch.ops.aten.add.Tensor,
]  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS, ids=str)
def test_arguments_round_trip(argument: Any) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    call = graph.call_function(torch.ops.aten.sin.default, (x, argument), {"key": argument})
    graph.output((call, x, None))
    text = print_graph(GraphModule({}, graph))
    node = list(parse_graph(text).graph.nodes)[1]
    assert node.args[1] == argument
    assert type(node.args[1]) is type(call.args[1]) or isinstance(argument, (list, dict))
    assert node.kwargs == {"key": argument}


def test_nan_round_trips() -> None:
    graph = Graph()
    graph.output((graph.call_function(torch.ops.aten.sin.default, (math.nan,)),))
    node = next(iter(parse_graph(print_graph(GraphModule({}, graph))).graph.nodes))
    assert math.isnan(node.args[0])


@pytest.mark.parametrize(
    "value_type",
    [
        "f32[]", "b1[0, 3]", "f16[2, 3]@cuda:0", "i64[4]{2}", "(f32[2], none, 3)", "[u8[1], true]",
        "f32[2, 3, 4]{12, 1, 3}", "float8_e5m2[1]", "2.5", "c64[2]",
    ],
)  # fmt: skip
def test_types_round_trip(value_type: str) -> None:
    text = f"graph {{\n  %x : {value_type} = placeholder\n  return (%x,)\n}}\n"
    assert print_graph(parse_graph(text)) == text


SYMBOLIC = """\
graph {
  symbols s33 = 5 in [2, int_oo]
  symbols s77 = 8 in [2, 64]
  symbols u0 = ? in [0, int_oo]
  %n : sym(s33) = placeholder
  %m : sym(2*s33 + s77) = operator.mul(%n, 2)
  %h : sym((s33//2)) = operator.floordiv(%n, 2)
  %x : f32[s33, Max(4, s77), 4] = placeholder  # model.py:3
  %y : f32[s33*s77, 4]{1, s33*s77} = aten.view.default(%x, [%m, 4])  # model.py:4
  %u : f32[u0, 2] = aten.nonzero.default(%y)
  return (%y, %u, none)
}
"""


def test_symbols_round_trip() -> None:
    graph = parse_graph(SYMBOLIC)
    assert print_graph(graph) == SYMBOLIC
    y = next(n for n in graph.graph.nodes if n.name == "y").meta["val"]
    assert [s.node.hint for s in y.shape[:1]] == [40]
    m = next(n for n in graph.graph.nodes if n.name == "m").meta["val"]
    assert m.node.hint == 18


def test_kernels_print_by_name_and_are_bound_by_the_parser() -> None:
    class Kernel:
        nest = "the nest"
        name = "row_0"
        __name__ = "row_0"

        def __call__(self, x: Any) -> Any:
            return x + 1

    kernel = Kernel()
    graph = Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(kernel, (x, 2)),))
    text = print_graph(GraphModule({}, graph))
    assert "= kernel @row_0(%x, 2)" in text
    bound = list(parse_graph(text, {"row_0": kernel}).graph.nodes)[1]
    assert bound.target is kernel
    unbound = list(parse_graph(text).graph.nodes)[1].target
    assert isinstance(unbound, UnboundKernel)
    assert print_graph(parse_graph(text)) == text
    with pytest.raises(RuntimeError, match="row_0"):
        unbound(1)


def graph_with(**constants: Any) -> GraphModule:
    root, graph = nn.Module(), Graph()
    for name, value in constants.items():
        if isinstance(value, torch.Tensor):
            root.register_buffer(name, value)
        else:
            setattr(root, name, value)
    graph.output(tuple(graph.get_attr(name) for name in constants))
    return GraphModule(root, graph)


def test_constants_and_nested_graphs() -> None:
    inner = Graph()
    inner.output((inner.call_function(operator.neg, (inner.placeholder("a"),)),))
    small, large = torch.tensor([1.0, -2.5]), torch.arange(5000)
    graph = graph_with(body=GraphModule({}, inner), small=small, large=large)
    text = print_graph(graph)
    assert "constant @small : f32[2] = [1.0, -2.5]" in text
    assert "constant @large : i64[5000] = ..." in text
    with pytest.raises(IRSyntaxError, match="constant @large is too large"):
        parse_graph(text)
    again = parse_graph(text, constants={"large": large})
    assert torch.equal(again.small, small)
    assert torch.equal(again.body(torch.ones(2))[0], -torch.ones(2))
    assert print_graph(again) == text
    stands_in = parse_graph(text, without_values=True)
    assert isinstance(stands_in.large, torch._subclasses.FakeTensor)
    assert print_graph(stands_in) == text


CONSTANTS = [
    torch.randn(33, 7),
    torch.randn(9, 8).t(),
    torch.randn(100).to(torch.bfloat16),
    torch.randn(4, 3).t(),
    torch.arange(1000) % 2 == 0,
    torch.randn(80, dtype=torch.complex64),
    torch.tensor([math.inf, -math.inf, math.nan]),
    torch.empty(0, 3),
    torch.tensor(3),
]


@pytest.mark.parametrize("value", CONSTANTS, ids=lambda value: f"{value.dtype}{list(value.shape)}")
def test_constants_keep_their_values_and_strides(value: torch.Tensor) -> None:
    text = print_graph(graph_with(c=value))
    assert "..." not in text
    again = parse_graph(text)
    assert print_graph(again) == text
    torch.testing.assert_close(again.c, value, rtol=0, atol=0, equal_nan=True)
    assert (again.c.stride(), again.c.dtype) == (value.stride(), value.dtype)


def test_a_packed_constant_is_as_long_as_its_type_says() -> None:
    text = print_graph(graph_with(c=torch.zeros(1000)))
    with pytest.raises(IRSyntaxError, match="another number of bytes"):
        parse_graph(text.replace("f32[1000]", "f32[10]"))
    with pytest.raises(IRSyntaxError, match="not the packed bytes"):
        parse_graph(text.replace('packed("', 'packed("!'))


ATTRIBUTES = """\
graph joint {
  %x : f32[4] = placeholder {static=layers.0.weight}
  %y : f32[4] = placeholder
  %sin : f32[4] = aten.sin.default(%x) {recompute=must_recompute, segment=3, recomputed_for=-1}
  %cos : f32[4] = aten.cos.default(%y) {recompute=must_save, backward}  # model.py:3
  %tan : f32[4] = aten.tan.default(%y) {tag=must_be_in_forward}  # a place of no line
  %exp : f32[4] = aten.exp.default(%tan) {untagged}
  return (%sin, %cos, %exp)
}
"""


def test_what_passes_know_of_nodes_is_in_the_text() -> None:
    graph = parse_graph(ATTRIBUTES)
    assert print_graph(graph) == ATTRIBUTES
    nodes = {node.name: node for node in graph.graph.nodes}
    assert static_name(nodes["x"]) == "layers.0.weight"
    assert static_name(nodes["y"]) is None
    assert nodes["sin"].meta["recompute"] is CheckpointPolicy.MUST_RECOMPUTE
    assert (nodes["sin"].meta["segment"], nodes["sin"].meta["recomputed_for"]) == (3, -1)
    tags = [nodes[name].meta.get("partitioner_tag") for name in ("sin", "cos", "tan", "exp")]
    assert tags == ["is_forward", "is_backward", "must_be_in_forward", None]
    assert [origin_of(nodes[name]) for name in ("sin", "cos", "tan")] == [
        None, "model.py:3", "a place of no line",
    ]  # fmt: skip


KERNELS = """\
graph forward {
  symbols s0 = 5 in [2, int_oo]
  symbols s1 = 0 in [-int_oo, int_oo] signed
  %n : sym(s0) = placeholder
  %m : sym(s1) = placeholder
  %x : f32[s0, 4] = placeholder
  %k0 : (f32[s0, 4], f32[4, s0]{1, 4}) = kernel @k0(%x, %n)
  %k1 : (f32[s0, 4], f32[4, s0]) = kernel @k1(%x, %n)
  %k2 : () = kernel @k2(%x, %n)
  return (%k0, %k1, %k2, none)
  kernel @k0(in b0: f32[s0, 4], out b1: f32[s0, 4], out b2: f32[4, s0]) {
    sizes s0
    axes p0: parallel s0, p1: parallel 4
    row:
      v0: f32 = load b0[4*p0 + p1]
      v1: f32 = sin v0
      store b1[4*p0 + p1] v1
      store b2[4*p0 + p1] v0
  }
  kernel @k0 makes f32[s0, 4], f32[4, s0]{1, 4} of "sin.default", "t" at "a \\" at \\"b.py:3"
  kernel @k1 is @k0
  kernel @k1 makes f32[s0, 4], f32[4, s0] of "sin.default"
  kernel @k2(inout b0: f32[s0, 4]) {
    sizes s0
    axes p0: parallel 4*s0
    row:
      v0: f32 = const 1.0
      store b0[p0] v0
  }
  kernel @k2 makes nothing of "fill.Scalar"
}
"""


def test_kernels_are_defined_in_the_text() -> None:
    graph = parse_graph(KERNELS)
    assert print_graph(graph) == KERNELS
    k0, k1, k2 = (n.target for n in graph.graph.nodes if n.name in ("k0", "k1", "k2"))
    assert all(isinstance(kernel, KernelOp) for kernel in (k0, k1, k2))
    assert k0.origin == Origin(("sin.default", "t"), ('a " at "b.py:3',))
    x = torch.randn(3, 4)
    for made, other in ((k0(x, 3), k0.eager(x, 3)), (k1(x, 3), k1.eager(x, 3))):
        torch.testing.assert_close(made[0], torch.sin(x))
        torch.testing.assert_close(made, other, rtol=0, atol=0)
    assert k2(x, 3) == ()
    assert torch.equal(x, torch.ones(3, 4))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("@k1 is @k0", "@k1 is @k9", 21, "kernel @k9 is not defined before"),
        ("@k1 is @k0", "@k0 is @k0", 21, "kernel @k0 is defined twice"),
        ("v1: f32 = sin v0", "v1: f32 = sin(v0)", 16, "expected an instruction"),
        ("@k2 makes nothing", "@k2 makes f32[1]", 30, "kernel @k2 makes nothing"),
        ("makes nothing of", "gives", 30, "expected 'kernel @name"),
        ("{1, 4} of", "{1} of", 20, "2 sizes but 1 strides"),
        ("kernel @k2(inout b0: f32[s0, 4]) {", "kernel @k2(inout b0) {", 23, "expected"),
    ],
)
def test_wrong_kernels_name_the_line(old: str, new: str, line: int, message: str) -> None:
    with pytest.raises(IRSyntaxError, match=message) as caught:
        parse_graph(KERNELS.replace(old, new))
    assert caught.value.line == line


def test_origins_follow_the_directory_and_those_of_a_text_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in CI: a line first met in one directory was shown as from there ever after."""
    graph = Graph()
    graph.placeholder("x").meta["stack_trace"] = f'  File "{tmp_path}/src/model.py", line 3, in f'
    graph.output(())
    texts = {}
    for folder in (tmp_path.parent, tmp_path, tmp_path / "src"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        texts[folder] = print_graph(GraphModule(nn.Module(), graph))
    places = [text.split("# ")[1].split()[0] for text in texts.values()]
    assert places == [f"{tmp_path.name}/src/model.py:3", "src/model.py:3", "model.py:3"]
    for text in (*texts.values(), texts[tmp_path].replace("src/", f"{tmp_path}/src/")):
        assert print_graph(parse_graph(text)) == text


def test_origin_is_the_users_line() -> None:
    graph = captured(Block(), torch.randn(2, 6, 16))[0]
    line = next(n for n in print_graph(graph).splitlines() if "gelu" in n)
    assert "test_graph_text.py:" in line.partition("#")[2]


WRONG = [
    ("graph {\n  return (%x,)\n}", 2, "%x is used before it is defined"),
    ("graph {\n  %x = placeholder\n  %x = placeholder\n  return (%x,)\n}", 3, "defined twice"),
    ("graph {\n  %x = aten.nothing.default(1)\n  return (%x,)\n}", 2, "unknown op"),
    ("graph {\n  %x : f33[2] = placeholder\n  return (%x,)\n}", 2, "unknown dtype"),
    ("graph {\n  %x : f32[s0] = placeholder\n  return (%x,)\n}", 2, "symbol s0 is not declared"),
    ("graph {\n  %x = placeholder\n", 2, "the text ends inside a graph"),
    ("graph {\n  %x = placeholder\n}", 3, "does not end with 'return'"),
    ("graph {\n  %x = placeholder\n  return (%x) tail\n}", 3, "unexpected"),
    ("kernel {\n}", 1, "expected 'graph {'"),
    ("graph {\n  %x = placeholder {new}\n  return (%x,)\n}", 2, "unknown attribute 'new'"),
    ("graph sideways {\n}", 1, "expected 'graph {'"),
    ('graph {\n  %x = python.os.system("true")\n  return (%x,)\n}', 2, "cannot be rebuilt"),
    ("graph {\n  %x : f32[__import__('os')] = placeholder\n  return (%x,)\n}", 2, "is not a size"),
]


@pytest.mark.parametrize(("text", "line", "message"), WRONG)
def test_wrong_text_names_the_line(text: str, line: int, message: str) -> None:
    with pytest.raises(IRSyntaxError, match=message) as caught:
        parse_graph(text)
    assert caught.value.line == line
