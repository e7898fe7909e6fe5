"""Compiled on two gloo ranks, a model on a mesh equals the same model on one device."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import deepcompile
from deepcompile.codegen.steps import ExternStep
from deepcompile.errors import MeshError, PartitionError, RankError, VerificationError
from deepcompile.ir.collectives import communicates, is_launch
from deepcompile.parallel.state import _whole
from deepcompile.passes.partition import rewrite
from deepcompile.passes.partition.emit import Emitter
from deepcompile.passes.partition.moves import Step
from deepcompile.recording import CompiledGraph, Recording, recording
from deepcompile.runtime import build

pytestmark = pytest.mark.distributed

RANKS = 2
LIMIT = 240  # seconds for all cases; a rank that is still there then shows where and ends
WIDTH, WORDS, LENGTH = 32, 64, 8

Inputs = tuple[Tensor, ...]


# -- models ---------------------------------------------------------------------------------------


class Block(nn.Module):
    """As in Llama: grouped heads, rotated by position, a gated MLP."""

    def __init__(self, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, WIDTH // heads
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, groups * self.size, bias=False)
        self.v = nn.Linear(WIDTH, groups * self.size, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.first, self.second = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(t: Tensor, number: int) -> Tensor:
            return t.view(batch, length, number, self.size).transpose(1, 2)

        def turned(t: Tensor) -> Tensor:
            half = self.size // 2
            return t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin

        y = self.first(x)
        q = turned(heads(self.q(y), self.heads))
        k, v = turned(heads(self.k(y), self.groups)), heads(self.v(y), self.groups)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([Block()])
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        size = self.layers[0].size
        angles = torch.outer(
            torch.arange(tokens.shape[1]).float(), 1 / 100 ** (torch.arange(0, size, 2) / size)
        )
        angles = torch.cat([angles, angles], -1)
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens.flatten())


class Gpt(nn.Module):
    """As in GPT-2: fused weights with biases, a tied head, dropout where it is asked for."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.first, self.second, self.last = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        x = self.dropout(x)
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.down(F.gelu(self.up(self.second(x)))))
        return F.cross_entropy(self.head(self.last(x)).flatten(0, 1), tokens.flatten())


class Mlp(nn.Module):
    """Little to compile, for what is not about the model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.deeper = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        x = F.relu(self.deeper(x)).mean((2, 3))
        return F.cross_entropy(self.head(x), labels)


class Experts(nn.Module):
    """The gradient of `weight` comes out transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.weight = nn.Parameter(torch.randn(4, WIDTH, 2 * WIDTH) / WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).flatten(0, 1)
        return torch.einsum("nw,ewf->enf", x, self.weight).relu().square().mean()


class Eager(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


class Broken(nn.Module):
    """A module in eager, a weight that is read in eager and in a graph, one that forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.eager, self.last = nn.Linear(8, 8), Eager(), nn.Linear(8, 8)
        self.last.weight = self.eager.linear.weight

    def forward(self, x: Tensor, version: int) -> Tensor:
        with torch.no_grad():
            self.first.weight.clamp_(-0.2, 0.2)
        x = self.last(self.eager(self.first(x)))
        return (x * 2 if version == 1 else x).square().mean()


LLAMA = {"embedding.weight": "S(0)", "head.weight": "S(0)"} | {
    f"layers.0.{name}.weight": where
    for name, where in {
        "q": "S(0)", "k": "S(0)", "v": "S(0)", "o": "S(1)",
        "gate": "S(0)", "up": "S(0)", "down": "S(1)",
    }.items()
}  # fmt: skip
GPT = {
    "words.weight": "S(0)", "qkv.weight": f"S(0;3x{WIDTH})", "qkv.bias": f"S(0;3x{WIDTH})",
    "out.weight": "S(1)", "up.weight": "S(0)", "up.bias": "S(0)", "down.weight": "S(1)",
}  # fmt: skip
CONVOLUTIONS = {
    "stem.weight": "S(0)", "stem.bias": "S(0)", "norm.weight": "S(0)", "norm.bias": "S(0)",
    "deeper.weight": "S(1)", "head.weight": "S(0)", "head.bias": "S(0)",
}  # fmt: skip
LLAMA_OF_DATA = dict.fromkeys((*LLAMA, "layers.0.first.weight", "norm.weight"), "S(0)")
MLP = {
    "embedding.weight": "S(0)", "up.weight": "S(0)", "up.bias": "S(0)", "down.weight": "S(1)",
    "head.weight": "S(0)",
}  # fmt: skip
MLP_OF_DATA = dict.fromkeys((*MLP, "norm.weight"), "S(0)")
MLP_PLANS = (("tp", MLP), ("dp", MLP_OF_DATA))


# -- what cases are made of -----------------------------------------------------------------------


def make(of: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return of()


def tokens(step: int, rows: int = 4, length: int = LENGTH) -> Inputs:
    generator = torch.Generator().manual_seed(step)
    return (torch.randint(0, WORDS, (rows, length), generator=generator),)


def images(step: int) -> Inputs:
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(4, 3, 8, 8, generator=generator),
        torch.randint(0, 10, (4,), generator=generator),
    )


def own(rank: int, inputs: Inputs, axis: str) -> Inputs:
    """A rank's batch: all of it, or its part on a data axis."""
    return tuple(x.chunk(RANKS)[rank] for x in inputs) if axis == "dp" else inputs


def whole(value: Tensor) -> Tensor:
    return _whole(value, True)


def close(got: Tensor, expected: Tensor, what: str, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-5, msg=lambda m: f"{what}: {m}")


def mean_of_ranks(loss: Tensor, axis: str) -> Tensor:
    loss = loss.detach().clone()
    if axis == "dp":
        dist.all_reduce(loss)
        loss /= RANKS
    return loss


def compare_gradients(model: nn.Module, twin: nn.Module) -> None:
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.placements == parameter.placements, name
        got, expected = whole(parameter.grad), theirs[name].grad
        assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


def train_and_compare(
    rank: int,
    of: Callable[[], nn.Module],
    axis: str,
    plan: dict[str, str],
    batches: Callable[[int], Inputs] = tokens,
    *,
    compile_twin: bool = False,
    steps: int = 3,
    **options: Any,
) -> tuple[Recording, nn.Module, Any]:
    """Steps of AdamW: losses, gradients and the norm of all parameters are the same."""
    torch._dynamo.reset()
    twin, model = make(of), make(of)
    deepcompile.parallelize(model, {axis: RANKS}, plan=plan)
    expected_of = torch.compile(twin, backend="deepep") if compile_twin else twin
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01, eps=1e-3) for m in (model, twin)]
    run = torch.compile(model, backend="deepep", options=options, fullgraph=True)
    with recording() as record:
        for step in range(steps):
            inputs = batches(step)
            torch.manual_seed(step)
            expected = expected_of(*inputs)
            torch.manual_seed(step)
            loss = run(*own(rank, inputs, axis))
            expected.backward()
            loss.backward()
            close(mean_of_ranks(loss, axis), expected.detach(), "loss", rtol=1e-5)
            compare_gradients(model, twin)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    norms = [
        torch.stack([whole(p.detach()).norm() for p in m.parameters()]).norm()
        for m in (model, twin)
    ]
    close(norms[0], norms[1], "norm of the parameters", rtol=1e-5)
    return record, model, run


def graph(record: Recording, kind: str) -> CompiledGraph:
    (found,) = [g for g in record.graphs if g.kind == kind]
    return found


def launches(compiled: CompiledGraph) -> list[str]:
    return [
        name.split(".")[1] for name, _ in compiled.externs if "_c10d" in name and "wait" not in name
    ]


def all_compiled(record: Recording) -> None:
    wrong = [fields for event, fields in record.events if event in ("fallback", "pass-failed")]
    assert not wrong, wrong
    for compiled in record.graphs:
        assert compiled.fallback is None
        assert not any("unshard" in name for name, _ in compiled.externs)


def without_gathers(names: list[str]) -> list[str]:
    return [name for name in names if name != "all_gather_into_tensor"]


def collectives_stay(record: Recording) -> None:
    """In order, as often, and with something to compute in between where there was something."""
    for compiled in record.graphs:
        before = [n for n in compiled.source.graph.nodes if n.op == "call_function"]
        targets = [n.target for n in before if communicates(n.target)]
        steps = compiled.spec.steps
        made = [s.target for s in steps if isinstance(s, ExternStep) and communicates(s.target)]
        assert made == targets, compiled.name


def gathers_again(record: Recording, plan: dict[str, str]) -> None:
    """Each parameter in forward; in backward all but the embedding, which it does not read."""
    forward, backward = graph(record, "forward"), graph(record, "backward")
    assert launches(forward) == ["all_gather_into_tensor"] * len(plan)
    again = launches(backward).count("all_gather_into_tensor")
    assert again <= len(plan) - 1
    assert again >= sum(name.endswith("weight") for name in plan) - 2
    nothing_gathered_is_saved(forward)


def nothing_gathered_is_saved(forward: CompiledGraph) -> None:
    """No output of forward is made of parameters alone, but for what this rank holds anyway."""
    assert forward.source is not None
    given = forward.source.graph.find_nodes(op="placeholder")
    of_inputs = {node for node in given if getattr(node.meta["val"], "dtype", None) is torch.int64}
    for node in forward.source.graph.nodes:
        if not of_inputs.isdisjoint(node.all_input_nodes):
            of_inputs.add(node)
    (outputs,) = forward.source.graph.output_node().args
    for node in outputs:
        source = node
        while source.op != "placeholder" and source not in of_inputs:
            assert not communicates(source.target), f"{node} is gathered"
            source = source.all_input_nodes[0] if source.all_input_nodes else given[0]
        assert not is_launch(node.target), f"{node} is handed out before it is there"


@contextmanager
def no_compiler() -> Iterator[None]:
    path = os.environ["PATH"]
    os.environ |= {"CXX": "/nowhere/c++", "PATH": "/nowhere"}
    build.find_compiler.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del os.environ["CXX"]
        os.environ["PATH"] = path
        build.find_compiler.cache_clear()


@contextmanager
def failing_pass() -> Iterator[None]:
    """`partition` raises at its end."""

    def fail(*args: Any) -> None:
        raise PartitionError("a rule is wrong")

    before = rewrite.Lowering.run
    rewrite.Lowering.run = fail  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        rewrite.Lowering.run = before  # type: ignore[method-assign]


# -- cases ----------------------------------------------------------------------------------------


def llama(rank: int) -> None:
    record, model, run = train_and_compare(rank, Llama, "tp", LLAMA)
    all_compiled(record)
    collectives_stay(record)
    assert launches(graph(record, "forward"))
    with recording() as record, torch.no_grad():
        close(run(*tokens(9)), model(*tokens(9)), "loss")  # not compiled, it gathers
    all_compiled(record)
    assert launches(graph(record, "inference"))


def gpt_with_tied_weights(rank: int) -> None:
    record, _, _ = train_and_compare(rank, Gpt, "tp", GPT)
    all_compiled(record)
    collectives_stay(record)


def convolutions(rank: int) -> None:
    record, _, _ = train_and_compare(rank, Convolutions, "tp", CONVOLUTIONS, images)
    all_compiled(record)
    collectives_stay(record)


def experts(rank: int) -> None:
    """Gradients of any strides, planned and, with symbolic sizes, not."""
    for dynamic in (False, True):
        torch._dynamo.reset()
        twin, model = make(Experts), make(Experts)
        deepcompile.parallelize(model, RANKS, plan={"weight": "S(0)"})
        loss = torch.compile(model, backend="deepep", dynamic=dynamic)(*tokens(0))
        loss.backward()
        twin(*tokens(0)).backward()
        compare_gradients(model, twin)


def dropout(rank: int) -> None:
    """The masks are those of one device."""
    record, _, _ = train_and_compare(rank, lambda: Gpt(0.3), "tp", GPT, compile_twin=True, steps=2)
    all_compiled(record)


def data_parallel(rank: int) -> None:
    record, _, _ = train_and_compare(rank, Mlp, "dp", {})
    all_compiled(record)
    assert not launches(graph(record, "forward"))
    assert launches(graph(record, "backward")) == ["all_reduce"] * 8


def sharded_data_parallel(rank: int) -> None:
    """Parameters are gathered in forward and again in backward, and none is kept in between."""
    record, _, _ = train_and_compare(rank, Llama, "dp", LLAMA_OF_DATA)
    all_compiled(record)
    collectives_stay(record)
    gathers_again(record, LLAMA_OF_DATA)
    backward = launches(graph(record, "backward"))
    assert backward.count("reduce_scatter_tensor") == len(LLAMA_OF_DATA)


def with_a_memory_budget(rank: int) -> None:
    for axis, plan in MLP_PLANS:
        record, _, _ = train_and_compare(rank, Mlp, axis, plan, steps=1, memory_budget="256MiB")
        all_compiled(record)
        assert record.budgets
        nothing_gathered_is_saved(graph(record, "forward"))


def with_a_tight_memory_budget(rank: int) -> None:
    """Parameters are gathered again; nothing that was reduced or exchanged is computed again."""
    plan = dict.fromkeys(GPT, "S(0)")
    record, _, _ = train_and_compare(rank, Gpt, "dp", plan, steps=1, memory_budget="256MiB")
    usual = [sorted(launches(g)) for g in record.graphs]
    (budget,) = record.budgets
    tight = int(budget.pinned.total + 0.72 * (budget.peak - budget.pinned.total))
    record, _, _ = train_and_compare(rank, Gpt, "dp", plan, steps=1, memory_budget=tight)
    all_compiled(record)
    assert record.budgets[0].planned is not None
    nothing_gathered_is_saved(graph(record, "forward"))
    found = [sorted(launches(g)) for g in record.graphs]
    assert found[0] == usual[0]
    assert without_gathers(found[1]) == without_gathers(usual[1])


def inference(rank: int) -> None:
    torch._dynamo.reset()
    twin, model = make(Gpt), make(Gpt)
    deepcompile.parallelize(model, RANKS, plan=GPT)
    run = torch.compile(model, backend="deepep", fullgraph=True)
    with recording() as record, torch.inference_mode():
        close(run(*tokens(0)), twin(*tokens(0)), "loss")
    all_compiled(record)
    assert launches(graph(record, "inference"))


def parts_of_a_model(rank: int) -> None:
    """Layers compiled each by itself, in a model that is not."""
    torch._dynamo.reset()
    twin, model = make(Llama), make(Llama)
    deepcompile.parallelize(model, RANKS, plan=LLAMA)
    for layer in model.layers:
        layer.compile(backend="deepep", fullgraph=True)
    with recording() as record:
        loss, expected = model(*tokens(0)), twin(*tokens(0))
        loss.backward()
        expected.backward()
    close(loss, expected, "loss")
    compare_gradients(model, twin)
    all_compiled(record)


def whole_parameters(rank: int) -> None:
    """With the option mesh, plain parameters get whole gradients, averaged on all ranks."""
    for axis, dynamic in (("dp", False), ("dp", True), ("tp", None)):
        torch._dynamo.reset()
        twin, model = make(lambda: Gpt(0.3)), make(lambda: Gpt(0.3))
        expected_of = torch.compile(twin, backend="deepep", dynamic=dynamic)
        options = {"mesh": {axis: RANKS}}
        run = torch.compile(model, backend="deepep", options=options, dynamic=dynamic)
        with recording() as record:
            for rows in (4, 6):
                inputs = tokens(rows, rows)
                for m in (model, twin):
                    m.zero_grad()
                    m.train(axis == "tp")
                torch.manual_seed(rows)
                expected = expected_of(*inputs)
                torch.manual_seed(rows)
                loss = run(*own(rank, inputs, axis))
                loss.backward()
                expected.backward()
                close(mean_of_ranks(loss, axis), expected.detach(), "loss", rtol=1e-5)
                for (name, got), other in zip(
                    model.named_parameters(), twin.parameters(), strict=True
                ):
                    close(got.grad, other.grad, name)
        all_compiled(record)
        backward = [launches(g) for g in record.graphs if g.kind == "backward"]
        if axis == "dp":
            mine = [found for found in backward if found]  # those of `twin` have none
            assert mine
            for found in mine:
                assert found == ["all_reduce"] * len(list(model.parameters()))


def shared_work(rank: int) -> None:
    """Where sharing pays, each rank of a tensor axis computes its part of whole parameters."""
    torch._dynamo.reset()

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))

    twin, model = make(mlp), make(mlp)
    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,), mesh_dim_names=("tp",))
    run = torch.compile(model, backend="deepep", options={"mesh": mesh})
    x = torch.randn(2048, 256, generator=torch.Generator().manual_seed(0))
    with recording() as record:
        run(x).square().mean().backward()
    twin(x).square().mean().backward()
    all_compiled(record)
    assert launches(graph(record, "forward"))
    for got, other in zip(model.parameters(), twin.parameters(), strict=True):
        close(got.grad, other.grad, "gradient")


def gradients_of_eager_code(rank: int) -> None:
    """Whole parameters: averaged too, also those of a frame that is not compiled once more."""
    torch._dynamo.reset()
    twin, model = make(Broken), make(Broken)
    run = torch.compile(model, backend="deepep", options={"mesh": {"dp": RANKS}})
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with torch._dynamo.config.patch(recompile_limit=1), recording() as record:
        for version in (0, 0, 1):
            twin(x, version).backward()
            run(x.chunk(RANKS)[rank], version).backward()
            for (name, got), other in zip(model.named_parameters(), twin.parameters(), strict=True):
                close(got.grad, other.grad, f"{name} of version {version}")
    assert "graph-break" in [event for event, _ in record.events]


def cannot_be_captured(rank: int) -> None:
    """With whole parameters eager would average nothing, so it does not take over."""
    for mesh, what in (({"tp": 3}, "3 ranks, but there are 2"), ("dp=1,tp=2", "")):
        torch._dynamo.reset()
        model = make(Mlp)
        run = torch.compile(model, backend="deepep", options={"mesh": mesh})
        if what:
            with pytest.raises(MeshError, match=what):
                run(*tokens(0))
        else:
            close(run(*tokens(0)), model(*tokens(0)), "loss")


def fallback(rank: int) -> None:
    """Without a C++ compiler, lowered graphs are interpreted, the same on all ranks."""
    with no_compiler():
        record, model, run = train_and_compare(rank, Mlp, "tp", MLP, steps=2)
        with recording() as without_gradients, torch.no_grad():
            close(run(*tokens(9)), model(*tokens(9)), "loss")
    for compiled in (*record.graphs, *without_gradients.graphs):
        assert compiled.fallback is not None
        assert "no working C++ compiler" in compiled.fallback
        assert compiled.source is not None
    events = [event for event, _ in (*record.events, *without_gradients.events)]
    assert events.count("fallback") == 3


def fallback_of_one_rank(rank: int) -> None:
    """A rank without a compiler runs the same collectives as one that has it."""
    with no_compiler() if rank else contextlib.nullcontext():
        record, model, run = train_and_compare(rank, Mlp, "tp", MLP, steps=2)
        with torch.no_grad():
            close(run(*tokens(9)), model(*tokens(9)), "loss")
    assert all((compiled.fallback is not None) == bool(rank) for compiled in record.graphs)


def pass_fails(rank: int) -> None:
    """Markers that are left communicate as they say."""
    with failing_pass():
        for axis, plan in MLP_PLANS:
            record, model, run = train_and_compare(rank, Mlp, axis, plan, steps=2)
            failed = [f for e, f in record.events if e == "pass-failed"]
            assert [f["pass"] for f in failed] == ["partition"]
            assert "a rule is wrong" in failed[0]["error"]
            nothing_gathered_is_saved(graph(record, "forward"))
            with torch.no_grad():
                close(run(*tokens(9)), model(*tokens(9)), "loss")
        torch._dynamo.reset()
        model = deepcompile.parallelize(make(Mlp), RANKS, plan=MLP)
        with pytest.raises(PartitionError, match="a rule is wrong"):
            torch.compile(model, backend="deepep", options={"strict": True})(*tokens(0))
        assert "a rule is wrong" in str(deepcompile.explain(model, *tokens(0)))


def pass_left_out(rank: int) -> None:
    for axis, plan in MLP_PLANS:
        record, _, _ = train_and_compare(rank, Mlp, axis, plan, steps=2, disable=("partition",))
        assert not [e for e, _ in record.events if e in ("fallback", "pass-failed")]
        assert any("unshard" in name for name, _ in graph(record, "forward").externs)
        nothing_gathered_is_saved(graph(record, "forward"))


def longer_batches(rank: int) -> None:
    """Sizes that become symbols: a new graph for the second batch size, none for the third."""
    for axis, plan in MLP_PLANS:
        torch._dynamo.reset()
        twin, model = make(Mlp), make(Mlp)
        deepcompile.parallelize(model, {axis: RANKS}, plan=plan)
        run = torch.compile(model, backend="deepep")
        with recording() as record:
            for rows in (4, 6, 8, 4):
                inputs = tokens(rows, rows)
                loss, expected = run(*own(rank, inputs, axis)), twin(*inputs)
                loss.backward()
                expected.backward()
                close(mean_of_ranks(loss, axis), expected.detach(), "loss", rtol=1e-5)
                compare_gradients(model, twin)
        all_compiled(record)
        assert [g.kind for g in record.graphs] == ["forward", "backward"] * 2
        (reason,) = [f["reason"] for e, f in record.events if e == "not-partitioned"]
        assert "sizes are symbols" in reason
        gathers_again(Recording(record.graphs[2:]), plan)


def verified(rank: int) -> None:
    for axis, plan in MLP_PLANS:
        record, _, _ = train_and_compare(rank, Mlp, axis, plan, steps=1, verify=True)
        all_compiled(record)
        checked = [(f["pass"], e) for e, f in record.events if e.startswith("verif")]
        assert ("partition", "verified") in checked
        assert ("fuse-rows", "verified") in checked
        assert not [name for name, event in checked if event != "verified"]


def verified_to_be_wrong(rank: int) -> None:
    """A rank's graph that forgets a reduction is found out, on all ranks and without the others."""
    torch._dynamo.reset()
    model = deepcompile.parallelize(make(Mlp), RANKS, plan=MLP)
    launch, finish = Emitter.launch, Emitter.finish

    def without_launch(self: Emitter, step: Step, value: Any) -> Any:
        return value if step.kind == "all_reduce" else launch(self, step, value)

    def without_wait(self: Emitter, step: Step, launched: Any, before: Any) -> Any:
        return launched if step.kind == "all_reduce" else finish(self, step, launched, before)

    Emitter.launch, Emitter.finish = without_launch, without_wait  # type: ignore[method-assign]
    try:
        with pytest.raises(VerificationError, match=r"'partition' failed.*on rank 0, output"):
            torch.compile(model, backend="deepep", options={"verify": True})(*tokens(0))
    finally:
        Emitter.launch, Emitter.finish = launch, finish  # type: ignore[method-assign]


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.up(rows * scale)


def inputs_that_differ(rank: int) -> None:
    """The last case: ranks that have raised are counted as gone. Neither has run these before."""
    torch._dynamo.reset()
    # Nothing but its parameters moves, and those are alike on both ranks.
    model = deepcompile.parallelize(Rows(), RANKS, plan={"up.weight": "S(0)"})
    run = torch.compile(model, backend="deepep")
    line = r"`rows in test_partitioned\.py:\d+`"
    says = rf"input f32\[10, 8\] {line} against input f32\[12, 8\] {line}"
    with pytest.raises(RankError, match=says):
        run(torch.ones(10 + 2 * rank, 8), torch.ones(8))
    store = dist.distributed_c10d._get_default_store()  # in the process of rank 0
    store.set(f"raised/{rank}", "")
    store.wait([f"raised/{other}" for other in range(RANKS)], timedelta(seconds=20))


CASES = {
    case.__name__: case
    for case in (
        llama, gpt_with_tied_weights, convolutions, experts, dropout, data_parallel,
        sharded_data_parallel,
        with_a_memory_budget, with_a_tight_memory_budget, inference, parts_of_a_model,
        whole_parameters, shared_work, gradients_of_eager_code, cannot_be_captured,
        fallback, fallback_of_one_rank, pass_fails, pass_left_out, longer_batches,
        verified, verified_to_be_wrong, inputs_that_differ,
    )
}  # fmt: skip


def work(rank: int, port: int, names: list[str], results: Any) -> None:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", rank=rank, world_size=RANKS, timeout=timedelta(seconds=LIMIT / 2)
    )
    for name in names:
        try:
            CASES[name](rank)
            results.put((name, rank, ""))
        except BaseException:
            results.put((name, rank, traceback.format_exc()))
            break  # the other rank may be left in a collective
    results.close()
    results.join_thread()
    os._exit(0)  # without waiting for threads of a process group whose peer is gone


def run_cases(names: list[str]) -> dict[str, dict[int, str]]:
    """What each case did on each rank; all run in one pair of processes, to start them once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=work, args=(rank, port, names, results), daemon=True)
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT + 20
    for process in processes:
        process.join(max(deadline - time.monotonic(), 1))
        if process.is_alive():
            process.kill()
    found: dict[str, dict[int, str]] = {name: {} for name in names}
    while not results.empty():
        name, rank, error = results.get()
        found[name][rank] = error
    return found


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, dict[int, str]]:
    """Of the cases that were selected."""
    items = [item for item in request.session.items if item.module is request.module]
    names = [item.callspec.params["name"] for item in items if hasattr(item, "callspec")]
    return run_cases([name for name in CASES if name in names])


SLOW = (
    gpt_with_tied_weights, convolutions, experts, data_parallel, sharded_data_parallel,
    with_a_memory_budget, with_a_tight_memory_budget, inference, parts_of_a_model, shared_work,
    whole_parameters, gradients_of_eager_code, cannot_be_captured, fallback, pass_fails,
    pass_left_out, longer_batches, verified, verified_to_be_wrong,
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (case in SLOW)) for n, case in CASES.items()],
)
def test_two_ranks(outcomes: dict[str, dict[int, str]], name: str) -> None:
    assert outcomes[name] == {0: "", 1: ""}, "\n".join(outcomes[name].values())
