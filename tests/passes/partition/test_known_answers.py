"""Plans of models at real sizes are those that people found, by collectives and bytes.

With T ranks on a ring, all-gather and reduce-scatter of x bytes put (T-1)/T x on the wire of each
rank, an all-reduce twice that. Graphs are traced on `meta`, planned with the table of an H100.
"""

from __future__ import annotations

import functools
import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import deepcompile
from benchmarks.sharding_modules import Chain, DecoderSizes, decoder_on_meta
from deepcompile.cost.links import links_of
from deepcompile.cost.rates import rates_of
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import Placements, parse_placements, placements_text
from deepcompile.options import Options
from deepcompile.parallel.planning import BEFORE
from deepcompile.parallel.tracing import trace
from deepcompile.passes.partition.sites import Sites
from deepcompile.pipeline.spec import parse_passes
from tests.passes.partition.harness import (
    Collective,
    Partitioned,
    collectives,
    partition,
    wire_bytes,
)

LENGTH = 2048
HIDDEN = LENGTH * 4096 * 2  # bytes of the hidden state of one row, bf16
SMALL = LENGTH * 4 * 8  # a few numbers a token, in single precision
MEGATRON = {
    "embedding.weight": "S(0)", "*.q.weight": "S(0)", "*.k.weight": "S(0)", "*.v.weight": "S(0)",
    "*.o.weight": "S(1)", "*.gate.weight": "S(0)", "*.up.weight": "S(0)",
    "*.down.weight": "S(1)", "head.weight": "S(0)",
}  # fmt: skip


def sites_of(model: nn.Module, batch: object) -> Sites:
    (sites,) = trace(model, batch, parse_passes(BEFORE), Options.resolve(None, None))  # type: ignore[arg-type]
    return sites


TWO_LAYERS = DecoderSizes(layers=2)


@functools.cache
def decoder(sizes: DecoderSizes = TWO_LAYERS, rows: int = 1, length: int = LENGTH) -> Sites:
    return sites_of(*decoder_on_meta(sizes, rows, length))


@functools.cache
def chain(tokens: int, width: int, inner: int, layers: int) -> Sites:
    with torch.device("meta"):
        return sites_of(Chain(width, inner, layers), {"x": torch.zeros(tokens, width)})


def plan(sites: Sites, mesh: str | Mesh, data: tuple[str, ...] = ("dp",), **options) -> Partitioned:
    where = Mesh.of(mesh, data)
    return partition(
        sites, where, rates=rates_of("cuda", 90, 1), links=links_of(where, "cuda"), **options
    )


def pinned(sites: Sites, patterns: dict[str, str]) -> dict[str, list[Placements]]:
    """Constraints by the ends of names."""
    return {
        parameter.name: [parse_placements(text)]
        for parameter in sites.parameters
        for pattern, text in patterns.items()
        if parameter.name.endswith(pattern.removeprefix("*"))
    }


def large(parts: Partitioned, least: int) -> Counter[tuple[str, str, int]]:
    """Collectives of at least so many bytes."""
    return Counter(
        {
            (found.kind, found.axis, found.bytes): count
            for found, count in collectives(parts.graph, parts.mesh).items()
            if found.bytes >= least
        }
    )


def placed(parts: Partitioned) -> dict[str, set[str]]:
    """By the last but one part of a parameter's name, where its parameters are."""
    found: dict[str, set[str]] = {}
    for name, placements in parts.choice.parameters.items():
        found.setdefault(name.split(".")[-2], set()).add(placements_text(placements))
    return found


# -- one axis --------------------------------------------------------------------------------------


def test_dense_decoder_is_megatron_with_sequence_parallelism() -> None:
    parts = plan(decoder(), "tp=8")
    # Four and four in each layer and one and one of the head: nothing else of that size.
    assert large(parts, HIDDEN) == {
        ("all_gather", "tp", HIDDEN): 4 * 2 + 1,
        ("reduce_scatter", "tp", HIDDEN): 4 * 2 + 1,
    }
    places = placed(parts)
    for name in ("q", "k", "v", "gate", "up", "head"):
        assert places[name] == {"S(0)"}, name
    for name in ("o", "down"):
        assert places[name] == {"S(1)"}, name
    for name in ("before", "between", "norm"):
        assert places[name] == {"R"}, name


def test_megatron_given_as_constraints_costs_no_less() -> None:
    free, given = plan(decoder(), "tp=8"), pinned(decoder(), MEGATRON)
    megatron = plan(decoder(), "tp=8", allowed=given)
    assert free.choice.solution.bound <= free.choice.solution.seconds
    assert free.choice.solution.seconds <= megatron.choice.solution.seconds
    # Only the table of the embedding is elsewhere: sharded on the hidden dimension it is gathered
    # by exchanges of an eighth, where a sum over the vocabulary takes a reduce-scatter.
    assert megatron.choice.solution.seconds <= 1.03 * free.choice.solution.seconds


@pytest.mark.parametrize("fixed", ["*.q.weight", "*.down.weight", "head.weight"])
@pytest.mark.slow
def test_constraints_never_make_a_plan_quicker(fixed: str) -> None:
    sites = decoder(DecoderSizes(layers=1))
    free = plan(sites, "tp=8", limit=math.inf).choice.solution
    costs = []
    for text in ("R", "S(0)", "S(1)"):
        given = plan(sites, "tp=8", limit=math.inf, allowed=pinned(sites, {fixed: text}))
        costs.append(given.choice.solution.seconds)
    limited = plan(sites, "tp=8").choice.solution
    assert free.bound <= min(limited.seconds, *costs) * (1 + 1e-9)
    # One of them is what it chose freely.
    assert min(costs) <= free.seconds * 1.01
    assert max(costs) > free.seconds


def test_plans_do_not_depend_on_names_of_axes() -> None:
    one = plan(decoder(), "dp=4,tp=8")
    other = plan(decoder(), "outer=4,inner=8", ("outer",))
    assert one.choice.solution.seconds == pytest.approx(other.choice.solution.seconds, rel=1e-12)
    assert one.choice.parameters == other.choice.parameters


@pytest.mark.parametrize("mesh", ["tp=1", "dp=1,tp=1", "a=1,b=1"])
def test_one_rank_has_no_collectives(mesh: str) -> None:
    parts = plan(decoder(), mesh)
    assert not collectives(parts.graph, parts.mesh)
    assert {text for texts in placed(parts).values() for text in texts} <= {"R", "R R"}


def test_an_axis_of_one_rank_changes_nothing() -> None:
    one, other = plan(decoder(), "tp=8"), plan(decoder(), "dp=1,tp=8")
    assert one.choice.solution.seconds == pytest.approx(other.choice.solution.seconds, rel=1e-12)
    assert collectives(one.graph, one.mesh) == collectives(other.graph, other.mesh)


def test_loss_over_a_sharded_vocabulary() -> None:
    """Three sums of a number a token, no exchange of logits: nobody told it about losses."""
    parts = plan(decoder(), "tp=8")
    logits = LENGTH * 32000 * 2
    assert not [key for key in large(parts, HIDDEN) if key[2] >= logits]
    row = LENGTH * 4
    found = collectives(parts.graph, parts.mesh)
    assert found[Collective("all_reduce", "tp", row)] <= 4
    assert placed(parts)["head"] == {"S(0)"}


def test_embedding_is_sharded_where_an_exchange_is_least() -> None:
    """Hidden-sharded, an untied table costs one exchange of a share, forward and backward."""
    parts = plan(decoder(), "tp=8")
    assert placed(parts)["embedding"] == {"S(1)"}
    found = collectives(parts.graph, parts.mesh)
    assert found[Collective("all_to_all", "tp", HIDDEN // 8)] == 2


def test_tied_embedding_has_one_place_and_both_gradients_are_added_there() -> None:
    sizes = DecoderSizes(layers=1, tied=True)
    parts = plan(decoder(sizes), "tp=8")
    assert "head" not in placed(parts)
    assert placed(parts)["embedding"] == {"S(0)"}
    # The embedding's sum over the vocabulary is a reduce-scatter, its gradient an all-gather.
    assert large(parts, HIDDEN) == {
        ("all_gather", "tp", HIDDEN): 4 + 2,
        ("reduce_scatter", "tp", HIDDEN): 4 + 2,
    }


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_heads_of_keys_are_shared_out_while_there_are_enough(ranks: int) -> None:
    parts = plan(decoder(DecoderSizes(layers=1)), f"tp={ranks}")
    assert placed(parts)["k"] == placed(parts)["v"] == {"S(0)"}
    # Nothing but the hidden state moves in a layer.
    kinds = {(kind, size) for kind, _, size in large(parts, SMALL)}
    exchange = {("all_to_all", HIDDEN // ranks)}
    assert kinds - exchange == {("all_gather", HIDDEN), ("reduce_scatter", HIDDEN)}


@pytest.mark.slow
def test_more_ranks_than_heads_of_keys_cost_no_more_than_replicating_keys() -> None:
    sites = decoder(DecoderSizes(layers=1))
    fallback = pinned(sites, {"*.k.weight": "R", "*.v.weight": "R"})
    free, given = plan(sites, "tp=16"), plan(sites, "tp=16", allowed=fallback)
    assert free.choice.solution.bound <= given.choice.solution.seconds
    assert free.choice.solution.seconds <= 1.01 * given.choice.solution.seconds
    assert placed(free)["q"] == {"S(0)"}
    assert all("R" not in text for name in ("k", "v") for text in placed(free)[name])


# -- chains of linear layers -----------------------------------------------------------------------


@pytest.mark.parametrize("layers", [2, 4])
def test_wide_layers_and_few_tokens_alternate_columns_and_rows(layers: int) -> None:
    tokens, width = 1024, 4096
    parts = plan(chain(tokens, width, width, layers), "tp=8", limit=math.inf)
    assert [placements_text(p) for p in parts.choice.parameters.values()] == [
        "S(0)", "S(1)"
    ] * (layers // 2)  # fmt: skip
    # One sum after every second layer, one of its gradient before it, but for the input's.
    hidden = tokens * width * 4
    found = large(parts, hidden)
    assert wire_bytes(_counted(found), parts.mesh) == pytest.approx(
        (layers - 1) * 2 * 7 / 8 * hidden
    )


@pytest.mark.parametrize("layers", [2, 4])
def test_many_tokens_are_shared_out_and_gradients_of_weights_summed(layers: int) -> None:
    tokens, width = 65536, 4096
    parts = plan(chain(tokens, width, width, layers), "tp=8", limit=math.inf)
    weight = width * width * 4
    assert large(parts, SMALL) == {("all_reduce", "tp", weight): layers}
    assert {placements_text(p) for p in parts.choice.parameters.values()} == {"R"}


@pytest.mark.parametrize("tokens", [1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_chains_move_no_more_than_the_better_of_tensors_and_data(tokens: int) -> None:
    """Two layers without a gradient of the input: tensor parallel wins while N < 2 F."""
    width = inner = 4096
    parts = plan(chain(tokens, width, inner, 2), "tp=8", limit=math.inf)
    tensor, data = tokens * width * 4, 2 * width * inner * 4
    moved = wire_bytes(collectives(parts.graph, parts.mesh), parts.mesh)
    assert moved <= 2 * 7 / 8 * min(tensor, data) * 1.001 + 64
    is_tensor = [placements_text(p) for p in parts.choice.parameters.values()] == ["S(0)", "S(1)"]
    assert is_tensor == (tokens < 2 * inner) or moved < 2 * 7 / 8 * min(tensor, data)


def _counted(found: Counter[tuple[str, str, int]]) -> dict[Collective, int]:
    return {Collective(*key): count for key, count in found.items()}


# -- two axes --------------------------------------------------------------------------------------


def test_data_and_tensor_axes_each_do_their_part() -> None:
    parts = plan(decoder(), "dp=4,tp=8")
    assert large(parts, HIDDEN)[("all_gather", "tp", HIDDEN)] == 4 * 2 + 1
    assert large(parts, HIDDEN)[("reduce_scatter", "tp", HIDDEN)] == 4 * 2 + 1
    # On dp nothing but gradients, each once, of a tensor rank's share.
    on_dp = {k: n for k, n in collectives(parts.graph, parts.mesh).items() if k.axis == "dp"}
    assert {found.kind for found in on_dp} == {"all_reduce"}
    shares = sum(
        parameter.bytes
        // math.prod(
            8 for place in parts.choice.parameters[parameter.name] if str(place).startswith("S")
        )
        for parameter in parts.sites.parameters
    )
    assert sum(found.bytes * count for found, count in on_dp.items()) == shares


def test_a_limit_of_memory_shares_parameters_on_the_data_axis() -> None:
    """Gathered for forward and for backward, and gradients reduce-scattered: ZeRO's third stage."""
    model, batch = decoder_on_meta(DecoderSizes(layers=1, width=2048, heads=16, inner=5504))
    whole = 2 * sum(p.numel() for p in model.parameters())
    options = {"device": "cuda", "memory_limit": int(whole * 6 / 8 * 1.02) + 600 * 2**20}
    found = deepcompile.plan(model, batch, "dp=8", **options)
    moved: Counter[tuple[str, str]] = Counter()
    for move in found.moves:
        moved[move.kind, move.phase] += move.bytes * move.count
    assert moved["all_gather", "forward"] == moved["all_gather", "backward"]
    assert moved["all_gather", "forward"] == moved["reduce_scatter", "backward"]
    assert moved["all_gather", "forward"] >= 0.5 * whole
    assert found.memory["parameters"] < found.memory["one device"] / 2


# -- experts ---------------------------------------------------------------------------------------


def test_experts_of_a_fixed_capacity_exchange_tokens() -> None:
    """Rows are shared out, experts too: two exchanges forward, two backward, of the slots."""
    sizes = DecoderSizes(layers=1, width=2048, heads=16, experts=16, capacity=64, inner=4096)
    parts = plan(decoder(sizes, rows=16, length=512), "tp=8")
    assert {n: p for n, p in _by_name(parts).items() if n.split(".")[-1] in ("up", "down")} == {
        "blocks.0.mlp.up": "S(0)",
        "blocks.0.mlp.down": "S(0)",
    }
    slots = 16 * 16 * 64 * 2048 * 2
    found = collectives(parts.graph, parts.mesh)
    assert found[Collective("all_to_all", "tp", slots // 8)] == 4
    # No hidden state is summed for the experts: one gather and one scatter are of the head.
    hidden = 16 * 512 * 2048 * 2
    assert large(parts, hidden) == {
        ("all_gather", "tp", hidden): 1,
        ("reduce_scatter", "tp", hidden): 1,
    }


class Dropless(nn.Module):
    """Each token goes to its two best experts, however many others do."""

    def __init__(self, width: int, inner: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, width, inner))
        self.down = nn.Parameter(torch.empty(experts, inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        odds, chosen = torch.softmax(self.router(x).float(), -1).topk(2)
        expert, order = chosen.flatten().sort()
        counts = torch.zeros(self.up.shape[0], device=x.device).scatter_add_(
            0, expert, torch.ones_like(expert, dtype=torch.float32)
        )
        ends = counts.cumsum(0).to(torch.int32)
        inside = F.relu(torch._grouped_mm(x[order // 2], self.up, offs=ends))
        outside = torch._grouped_mm(inside, self.down, offs=ends)
        outside = outside * odds.flatten()[order, None].to(x.dtype)
        result = torch.zeros_like(x).index_add(0, order // 2, outside)
        return (x + result).float().square().mean()


def test_experts_without_a_capacity_give_partial_results_that_are_summed_once() -> None:
    tokens, width, inner, experts = 4096, 2048, 4096, 16
    with torch.device("meta"):
        model = Dropless(width, inner, experts).to(torch.bfloat16)
        x = torch.zeros(tokens, width, dtype=torch.bfloat16)
    parts = plan(sites_of(model, {"x": x}), "tp=8")
    places = _by_name(parts)
    assert places["up"] != "R"
    assert places["down"] != "R"
    # Partial results are summed once, as with experts that are shared out whole.
    hidden = tokens * width * 2
    moved = wire_bytes(collectives(parts.graph, parts.mesh), parts.mesh)
    assert moved == pytest.approx(2 * 7 / 8 * hidden, rel=0.01)


def _by_name(parts: Partitioned) -> dict[str, str]:
    return {name: placements_text(p) for name, p in parts.choice.parameters.items()}


# -- larger ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_thirty_two_layers() -> None:
    length, hidden = 4096, 4096 * 4096 * 2
    parts = plan(decoder(DecoderSizes(layers=32), length=length), "tp=8")
    assert large(parts, hidden) == {
        ("all_gather", "tp", hidden): 4 * 32 + 1,
        ("reduce_scatter", "tp", hidden): 4 * 32 + 1,
    }
    assert parts.choice.solution.gap <= 0.01
