"""Lines of IR text: what a node is, and that any text at all can be read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepcompile.inspect.ir_text import IRGraph, op_delta, parse_ir

TEXT = """\
graph joint {
  symbols s0 = 5 in [2, int_oo]
  constant @c : f32[2] = [1.0, 2.0]
  graph @body {
    %x : f32[2] = placeholder
    return (%x,)
  }
  %n : sym(s0) = placeholder
  %x : f32[s0, 4]{1, s0}+{2}@cuda:0 = placeholder @x_1 {static}
  %c : f32[2] = get_attr @c
  %mm : f32[s0, 4] = aten.mm.default(%x, %x, "a  # %no \\" b", k=%n) {backward}  # my file.py:12
  %b : (f32[2],) = batch @body([%mm], [%n, %c])  # m.py:3 in layers.0.attn
  %k : (f32[2],) = kernel @k0(%b)
  %q = call_method @view(%k, -1)
  return (%k, none)
  kernel @k0(
    in b0: f32[2]
  ) {
    row:
      v0: f32 = load b0[p0]
  }
  kernel @k0 makes f32[2] of "sin.default" at "m.py:3"
  kernel @k1 is @k0
}
"""


def test_nodes_are_read() -> None:
    graph = parse_ir(TEXT)
    assert (graph.kind, graph.complete, graph.unknown) == ("joint", True, ())
    names = [node.name for node in graph.nodes]
    assert names == ["n", "x", "c", "mm", "b", "k", "q", "return"]
    x, mm, b, k = (graph.by_name[name] for name in ("x", "mm", "b", "k"))
    assert (x.op, x.target, x.type) == ("placeholder", "x_1", "f32[s0, 4]{1, s0}+{2}@cuda:0")
    assert (x.attributes, mm.attributes) == ("static", "backward")
    assert (mm.op, mm.target, mm.inputs) == ("call", "aten.mm.default", ("x", "x", "n"))
    assert (mm.origin, mm.module) == ("my file.py:12", "")
    assert (b.op, b.target, b.inputs) == ("batch", "body", ("mm", "n", "c"))
    assert (b.origin, b.module) == ("m.py:3", "layers.0.attn")
    assert graph.users["mm"] == ("b",)
    assert graph.users["k"] == ("q", "return")
    assert [body.name for body in graph.bodies] == ["body"]
    assert len(graph.declarations) == 2
    assert len(graph.kernels["k0"]) == 7
    assert graph.kernels["k1"] == ("kernel @k1 is @k0",)
    lines = TEXT.splitlines()
    for node in graph.nodes:
        assert lines[node.line - 1].strip().startswith(node.statement)
    assert k.statement == "%k : (f32[2],) = kernel @k0(%b)"


def test_ops_are_counted_as_the_run_directory_does() -> None:
    graph = parse_ir(TEXT)
    assert graph.op_counts() == {"aten.mm.default": 1, "batch": 1, "kernel": 1, "view": 1}
    assert op_delta(graph, graph.only({"mm"})) == {"batch": -1, "kernel": -1, "view": -1}


def test_neighbours() -> None:
    graph = parse_ir(TEXT)
    assert graph.around("b", 0) == {"b"}
    assert graph.around("b", 1) == {"b", "mm", "n", "c", "k"}
    assert graph.around("q", 3) == {"q", "k", "b", "mm", "n", "c"}


def test_cut_and_foreign_texts() -> None:
    cut = parse_ir(TEXT[: TEXT.index("%k :")])
    assert not cut.complete
    assert [node.name for node in cut.nodes] == ["n", "x", "c", "mm", "b"]
    inside = parse_ir(TEXT[: TEXT.index("    return")])
    assert [body.complete for body in inside.bodies] == [False]
    foreign = parse_ir("# cannot be printed\nclass G:\n  def forward(self): pass\n")
    assert (foreign.nodes, len(foreign.unknown)) == ((), 3)
    odd = parse_ir("graph {\n  what is this\n  %a b = c\n  %x = f()\n}\n")
    assert [text for _, text in odd.unknown] == ["what is this", "%a b = c"]
    assert [node.name for node in odd.nodes] == ["x"]
    deep = parse_ir("graph {\n" * 1 + "graph @a {\n" * 20_000)
    assert not deep.complete


PIECES = st.sampled_from(
    ["graph {", "graph @g {", "}", "%a", " : ", "f32[2]", " = ", "aten.x(", ")", '"', "\\", "%b",
     "  # ", "m.py:1", "return ", "kernel @k", "(", " {", "{", " in x", "\n", "\r", "\x1b[0m", "é"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    graph = parse_ir(text)
    assert isinstance(graph, IRGraph)
    for node in graph.nodes:
        assert node.statement
        graph.around(node.name, 2)
    graph.op_counts()


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)
ARGUMENTS = st.lists(
    NAMES.map(lambda n: f"%{n}") | st.integers().map(str) | st.text(max_size=8).map(repr).map(
        lambda text: '"' + text.replace("\\", "").replace('"', "") + '"'
    ),
    max_size=4,
)  # fmt: skip


TYPES = st.sampled_from(["", "f32[2, 4]{4, 1}", "(f32[], i64[s0])"])
ORIGINS = st.sampled_from(["", "m.py:3", "a b/c.py:99"])
ATTRIBUTES = st.sampled_from(["", "static", "segment=1"])


@given(NAMES, TYPES, NAMES, ARGUMENTS, ORIGINS, ATTRIBUTES)
def test_a_line_reads_back(
    name: str, kind: str, op: str, arguments: list[str], origin: str, attributes: str
) -> None:
    line = f"%{name}{f' : {kind}' if kind else ''} = {op}.default({', '.join(arguments)})"
    line += f" {{{attributes}}}" if attributes else ""
    text = f"graph {{\n  {line}{f'  # {origin}' if origin else ''}\n}}\n"
    (node,) = parse_ir(text).nodes
    assert (node.name, node.statement, node.origin) == (name, line, origin)
    assert list(node.inputs) == [a[1:] for a in arguments if a.startswith("%")]
