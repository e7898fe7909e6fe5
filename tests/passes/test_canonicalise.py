"""Canonicalise: goldens by rewrite, what must stay, and real graphs compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepcompile.ir.graph_parser import parse_graph
from deepcompile.ir.graph_printer import print_graph
from deepcompile.options import Options
from deepcompile.passes.canonicalise import Canonicalise

GOLDEN = sorted((Path(__file__).parent / "golden" / "canonicalise").glob("*.txt"))


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_golden(file, check_golden, apply_pass, assert_same_bits):
    def transform(text: str) -> str:
        applied = apply_pass(Canonicalise(), parse_graph(text))
        assert_same_bits(applied.before, applied.after)
        assert not apply_pass(Canonicalise(), applied.after).result.changed
        return print_graph(applied.after)

    check_golden(file, transform)


KEPT = {
    "adding zero changes -0.0": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.add.Tensor(%x, 0.0)
      %z : f32[4] = aten.exp.default(%y)
      return (%z,)""",
    "subtracting -0.0 changes -0.0": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.sub.Tensor(%x, -0.0)
      %z : f32[4] = aten.exp.default(%y)
      return (%z,)""",
    "a cast down and up again rounds": """
      %x : f32[4] = placeholder
      %y : bf16[4] = aten._to_copy.default(%x, dtype=torch.bfloat16)
      %z : f32[4] = aten._to_copy.default(%y, dtype=torch.float32)
      %r : f32[4] = aten.exp.default(%z)
      return (%r,)""",
    "a cast over a narrower float rounds": """
      %x : f32[4] = placeholder
      %y : f16[4] = aten._to_copy.default(%x, dtype=torch.float16)
      %z : f64[4] = aten._to_copy.default(%y, dtype=torch.float64)
      return (%z,)""",
    "int64 is not exact in float32": """
      %x : i64[4] = placeholder
      %y : f32[4] = aten._to_copy.default(%x, dtype=torch.float32)
      %z : f64[4] = aten._to_copy.default(%y, dtype=torch.float64)
      return (%z,)""",
    "multiplying by one changes the type": """
      %x : i64[4] = placeholder
      %y : f32[4] = aten.mul.Tensor(%x, 1.0)
      %z : f32[4] = aten.exp.default(%y)
      return (%z,)""",
    "a returned clone of an input": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.clone.default(%x)
      return (%y,)""",
    "a view of a returned clone of an input": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.clone.default(%x)
      %z : f32[2, 2] = aten.view.default(%y, [2, 2])
      return (%z,)""",
    "a clone keeps two outputs apart": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.exp.default(%x)
      %z : f32[4] = aten.clone.default(%y)
      return (%y, %z)""",
    "equal outputs are apart": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.exp.default(%x)
      %z : f32[4] = aten.exp.default(%x)
      return (%y, %z)""",
    "a clone of part of an output": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.exp.default(%x)
      %p : f32[2] = aten.slice.Tensor(%y, 0, 0, 2)
      %z : f32[2] = aten.clone.default(%p)
      return (%y, %z)""",
    "a clone keeps the value from before a write": """
      %x : f32[4] = placeholder
      %y : f32[4] = placeholder
      %c : f32[4] = aten.clone.default(%x)
      %m : f32[4] = aten.copy_.default(%x, %y)
      %n : f32[4] = aten.copy_.default(%y, %c)
      return ()""",
    "reads before and after a write": """
      %x : f32[4] = placeholder
      %a : f32[4] = aten.exp.default(%x)
      %m : f32[4] = aten.copy_.default(%x, %a)
      %b : f32[4] = aten.exp.default(%x)
      return (%b,)""",
    "reads of a view before and after a write": """
      %x : f32[4] = placeholder
      %v : f32[2, 2] = aten.view.default(%x, [2, 2])
      %a : f32[2, 2] = aten.exp.default(%v)
      %f : f32[4] = aten.view.default(%a, [4])
      %m : f32[4] = aten.copy_.default(%x, %f)
      %b : f32[2, 2] = aten.exp.default(%v)
      return (%b,)""",
    "random numbers differ": """
      %x : f32[4] = placeholder
      %a : f32[4] = aten.rand_like.default(%x)
      %b : f32[4] = aten.rand_like.default(%x)
      %c : f32[4] = aten.sub.Tensor(%a, %b)
      return (%c,)""",
    "random numbers nobody reads move the generator": """
      %x : f32[4] = placeholder
      %a : f32[4] = aten.rand_like.default(%x)
      %b : f32[4] = aten.rand_like.default(%x)
      return (%b,)""",
    "a clone that changes strides": """
      %x : f32[4, 2]{1, 4} = placeholder
      %y : f32[4, 2] = aten.clone.default(%x, memory_format=torch.contiguous_format)
      %z : f32[8] = aten.view.default(%y, [8])
      return (%z,)""",
    "a view of a view that is not contiguous": """
      %x : f32[2, 2, 4]{16, 8, 1} = placeholder
      %y : f32[4, 4]{8, 1} = aten.view.default(%x, [4, 4])
      %z : f32[4, 2, 2]{8, 2, 1} = aten.view.default(%y, [4, 2, 2])
      return (%z,)""",
    "an alias of an input is another tensor": """
      %x : f32[4] = placeholder
      %y : f32[4] = aten.alias.default(%x)
      return (%y,)""",
    "scalars of other types": """
      %x : i64[4] = placeholder
      %a : i64[4] = aten.mul.Tensor(%x, 2)
      %b : f32[4] = aten.mul.Tensor(%x, 2.0)
      %c : f32[4] = aten.add.Tensor(%a, %b)
      return (%c,)""",
    "zeros of other signs": """
      %x : f32[4] = placeholder
      %a : f32[4] = aten.mul.Tensor(%x, 0.0)
      %b : f32[4] = aten.mul.Tensor(%x, -0.0)
      %c : f32[4] = aten.div.Tensor(%a, %b)
      return (%c,)""",
    "operands that do not commute": """
      %x : f32[4] = placeholder
      %y : f32[4] = placeholder
      %a : f32[4] = aten.sub.Tensor(%x, %y)
      %b : f32[4] = aten.sub.Tensor(%y, %x)
      %c : f32[4] = aten.mul.Tensor(%a, %b)
      return (%c,)""",
    "uninitialised memory is nobody's equal": """
      %a : f32[4] = aten.empty.memory_format([4])
      %b : f32[4] = aten.empty.memory_format([4])
      %c : f32[4] = aten.fill_.Scalar(%a, 1.0)
      %d : f32[4] = aten.fill_.Scalar(%b, 2.0)
      %e : f32[4] = aten.add.Tensor(%a, %b)
      return (%e,)""",
    "a part of a tensor": """
      %x : f32[4] = placeholder
      %a : f32[2] = aten.slice.Tensor(%x, 0, 0, 9, 2)
      %b : f32[2] = aten.exp.default(%a)
      return (%b,)""",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_what_must_stay_stays(text, apply_pass):
    graph = parse_graph("graph {\n" + text.strip("\n") + "\n}\n")
    applied = apply_pass(Canonicalise(), graph)
    assert applied.after is graph
    assert not applied.result.changed
    assert not applied.result.stats


def test_zero_minus_zero_keeps_its_sign():
    """The two claims about signed zeros that the rules rest on."""
    zero = torch.tensor([-0.0])
    assert torch.signbit(zero - 0.0).item()
    assert not torch.signbit(zero + 0.0).item()
    assert torch.signbit(zero * 1.0).item()


JOINT = """graph {
  %primals_1 : f32[4, 4] = placeholder
  %a : f32[4, 4] = aten.OP(%primals_1ARGS)
  %b : f32[4, 4] = aten.OP(%primals_1ARGS)
  %c : f32[4, 4] = aten.sub.Tensor(%a, %b)
  return (%c,)
}
"""


@pytest.mark.parametrize(
    ("op", "arguments", "shared"),
    [("exp.default", "", True), ("mm.default", ", %primals_1", False)],
)
def test_joint_graph_shares_across_the_border_only_what_is_cheap(op, arguments, shared, apply_pass):
    graph = parse_graph(JOINT.replace("OP", op).replace("ARGS", arguments))
    first, second = [n for n in graph.graph.nodes if n.name in "ab"]
    first.meta["partitioner_tag"], second.meta["partitioner_tag"] = "is_forward", "is_backward"
    assert apply_pass(Canonicalise(), graph, "joint").result.changed is shared
    assert apply_pass(Canonicalise(), graph, "forward").result.changed


def test_recompute_decisions_are_not_mixed(apply_pass):
    graph = parse_graph(JOINT.replace("OP", "exp.default").replace("ARGS", ""))
    next(n for n in graph.graph.nodes if n.name == "a").meta["recompute"] = "must"
    assert not apply_pass(Canonicalise(), graph, "joint").result.changed


REWRITES = ("no-op", "fold-views", "merge-casts", "common-subexpression", "dead-code")

EVERYTHING = """graph {
  %x : bf16[4, 4] = placeholder
  %n : bf16[4, 4] = aten.detach.default(%x)
  %t : bf16[4, 4]{1, 4} = aten.t.default(%n)
  %u : bf16[4, 4] = aten.t.default(%t)
  %f : f32[4, 4] = aten._to_copy.default(%u, dtype=torch.float32)
  %d : f64[4, 4] = aten._to_copy.default(%f, dtype=torch.float64)
  %a : f64[4, 4] = aten.exp.default(%d)
  %b : f64[4, 4] = aten.exp.default(%d)
  %c : f64[4, 4] = aten.mul.Tensor(%a, %b)
  return (%c,)
}
"""


def test_every_rewrite_is_counted(apply_pass):
    stats = apply_pass(Canonicalise(), parse_graph(EVERYTHING)).result.stats
    assert set(stats) == set(REWRITES)


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewrite_can_be_disabled(rewrite, apply_pass, assert_same_bits):
    options = Options(disable=(f"canonicalise/{rewrite}",))
    applied = apply_pass(Canonicalise(), parse_graph(EVERYTHING), options=options)
    assert rewrite not in applied.result.stats
    assert applied.result.stats
    assert_same_bits(applied.before, applied.after)


def test_every_number_of_rewrites_gives_the_same_values(apply_pass, assert_same_bits):
    total = sum(apply_pass(Canonicalise(), parse_graph(EVERYTHING)).result.stats.values())
    for limit in range(int(total) + 1):
        options = Options(rewrite_limit=("canonicalise", limit))
        applied = apply_pass(Canonicalise(), parse_graph(EVERYTHING), options=options)
        assert sum(applied.result.stats.values()) == limit
        assert_same_bits(applied.before, applied.after)


def test_meta_and_input_graph_are_kept(apply_pass):
    graph = parse_graph(EVERYTHING)
    for node in graph.graph.nodes:
        node.meta["stack_trace"] = f"trace of {node.name}"
    text = print_graph(graph)
    applied = apply_pass(Canonicalise(), graph)
    assert print_graph(graph) == text
    assert applied.after is not graph
    for node in applied.after.graph.nodes:
        assert node.meta["stack_trace"] == f"trace of {node.name}"
        assert node.op == "output" or "val" in node.meta
    applied.after.graph.lint()


def test_unknown_ops_stay_and_keep_their_memory_apart(apply_pass):
    library = torch.library.Library("canonicalise_test", "FRAGMENT")
    library.define("watch(Tensor x) -> Tensor")
    library.impl("watch", lambda x: x.clone(), "CompositeExplicitAutograd")
    graph = parse_graph(
        """graph {
  %x : f32[4] = placeholder
  %c : f32[4] = aten.clone.default(%x)
  %a : f32[4] = canonicalise_test.watch.default(%c)
  %b : f32[4] = canonicalise_test.watch.default(%c)
  return ()
}
"""
    )
    assert not apply_pass(Canonicalise(), graph).result.changed


def test_a_clone_of_a_part_stays_where_views_know_their_offset(capture):
    """Views of the clone say that they start at 0; in the memory of `x` that would be wrong."""
    recorded = capture(Canonicalise())
    recorded.compile(lambda x: x[2:].clone().view(2, 3, 2).exp())(torch.randn(5, 4))
    (applied,) = recorded.applied
    clones = [n for n in applied.after.graph.nodes if n.target is torch.ops.aten.clone.default]
    assert len(clones) == 1


# ---------------------------------------------------------------------- graphs of real models


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.view(batch, tokens, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        if self.causal:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = F.softmax(q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5, -1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 2, causal)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.causal = causal

    def forward(self, x):
        if not self.causal:
            x = self.first(x + F.dropout(self.attention(x), 0.1, self.training))
            return self.second(x + self.down(F.gelu(self.up(x))))
        x = x + self.attention(self.first(x))
        return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, causal: bool, blocks: int = 2, width: int = 8, words: int = 11) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(width, causal) for _ in range(blocks))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = (x + F.relu(self.norm(self.second(x)))).to(memory_format=torch.channels_last)
        return F.log_softmax(self.head(F.max_pool2d(x, 2).mean((2, 3))), -1)[:, 0].sum()


class Mutating(nn.Module):
    """Swaps its buffers, counts calls, returns views and aliases."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("old", torch.zeros(4))
        self.register_buffer("new", torch.ones(4))

    def forward(self, x):
        old = self.old.clone()
        self.old.copy_(self.new)
        self.new.copy_(old).add_(x.detach().mean(0))
        y = x @ self.weight.t().t()
        return (y * 1.0 + self.old.view(2, 2).reshape(4) - old).sum(), y.t(), y.view(-1), y.clone()


def tokens():
    return torch.randint(0, 11, (3, 7))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    given: Callable[[], torch.Tensor] = tokens
    dynamic: bool = False
    autocast: bool = False


MODELS = {
    "gpt": Case(lambda: Transformer(True)),
    "gpt-autocast": Case(lambda: Transformer(True, 1), autocast=True),
    "bert": Case(lambda: Transformer(False, 1)),
    "bert-dynamic": Case(lambda: Transformer(False, 1), dynamic=True),
    "convolutions": Case(Convolutions, lambda: torch.randn(2, 3, 8, 8)),
    "convolutions-dynamic": Case(Convolutions, lambda: torch.randn(3, 3, 8, 8), dynamic=True),
    "mutating": Case(Mutating, lambda: torch.randn(3, 4)),
    "mutating-dynamic": Case(Mutating, lambda: torch.randn(3, 4), dynamic=True),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "bert-dynamic")) for n in MODELS]
)
def test_graphs_of_models_keep_every_bit(name, capture, apply_pass, assert_same_bits):
    case = MODELS[name]
    recorded = capture(Canonicalise(), joint=Canonicalise())
    model, given = case.make(), case.given()
    compiled = recorded.compile(model, dynamic=case.dynamic)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        first = compiled(given)
        (first[0] if isinstance(first, tuple) else first).backward()
        model.eval()
        with torch.no_grad():
            compiled(given)
    kinds = {applied.kind for applied in recorded.applied}
    assert kinds == {"joint", "forward", "backward", "inference"}
    for applied in recorded.applied:
        assert_same_bits(applied.before, applied.after)
        assert not apply_pass(Canonicalise(), applied.after, applied.kind).result.changed
        placeholders = [n.target for n in applied.before.graph.nodes if n.op == "placeholder"]
        kept = [n.target for n in applied.after.graph.nodes if n.op == "placeholder"]
        assert kept == placeholders


@pytest.mark.parametrize("name", ["gpt", "convolutions", "mutating"])
def test_a_training_step_is_that_of_eager(name, capture):
    case = MODELS[name]
    model, given = case.make(), case.given()
    twin = case.make()
    twin.load_state_dict(model.state_dict())
    results = []
    for module in (twin, capture(Canonicalise(), joint=Canonicalise()).compile(model)):
        outputs = module(given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs[0].backward()
        results.append(outputs)
    torch.testing.assert_close(results[1], results[0])
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
