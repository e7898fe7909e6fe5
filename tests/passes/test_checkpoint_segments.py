"""Layers of a model: equal ones are found as equal, and what crosses between them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from deepcompile.passes.checkpoints.emit import backward_segments
from deepcompile.passes.checkpoints.joint import Joint, is_fusible
from deepcompile.passes.checkpoints.segments import Segments, segment
from tests.passes.checkpoint_graphs import joint_of

DEPTH = 5


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.norms[0](x)).unflatten(-1, (3, 2, -1))
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))


class Gpt(nn.Module):
    def __init__(self, width: int = 32, vocabulary: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(DEPTH)))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(x)))


class Skips(nn.Module):
    """Convolutions, each of whose results the opposite one reads too."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth))
        self.last = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for convolution in self.first:
            x = torch.tanh(convolution(x))
            results.append(x)
        for convolution in self.last:
            x = torch.tanh(convolution(torch.cat([x, results.pop()], 1)))
        return x


def chain(widths: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)))


GRAPHS = {
    "gpt": lambda: joint_of(Gpt(), torch.randint(64, (2, 16))),
    "chain": lambda: joint_of(chain((8, 12, 20, 16, 24, 10)), torch.randn(32, 8)),
    "skips": lambda: joint_of(Skips(), torch.randn(2, 4, 8, 8)),
    "one product": lambda: joint_of(nn.Linear(8, 8), torch.randn(4, 8)),
    "no product": lambda: joint_of(nn.LayerNorm(8), torch.randn(4, 8)),
}


@pytest.fixture(params=GRAPHS)
def cut(request: pytest.FixtureRequest) -> tuple[Joint, Segments]:
    joint = GRAPHS[request.param]()
    return joint, segment(joint)


def test_every_node_of_forward_has_one_segment(cut: tuple[Joint, Segments]) -> None:
    joint, found = cut
    assert found.count == len(found.members) == len(found.kind) >= 1
    members = [node for nodes in found.members for node in nodes]
    assert sorted(members, key=joint.position.__getitem__) == joint.forward
    assert all(found.home[node] == at for at, nodes in enumerate(found.members) for node in nodes)


def test_what_a_later_segment_reads_crosses_or_is_cheap(cut: tuple[Joint, Segments]) -> None:
    joint, found = cut
    for node in joint.required:
        if node.op != "call_function":
            continue
        for source in node.all_input_nodes:
            base = joint.base(source)
            if base.op == "placeholder" or found.home[base] == found.home[node]:
                continue
            assert found.home[base] < found.home[node]
            assert base in found.crossing or base in found.cheap or source in found.cheap


def test_backward_goes_through_segments_from_the_last_to_the_first(
    cut: tuple[Joint, Segments],
) -> None:
    joint, found = cut
    of = backward_segments(joint, found)
    assert list(of) == joint.backward
    for node, number in of.items():
        sources = [of[source] for source in node.all_input_nodes if source in of]
        assert 0 <= number <= min(sources, default=found.count - 1)
    numbers = list(of.values())
    assert numbers == sorted(numbers, reverse=True)


def test_layers_of_a_gpt_are_equal_segments() -> None:
    joint = GRAPHS["gpt"]()
    found = segment(joint)
    most = max(found.kind, key=found.kind.count)
    # The first layer also embeds, or the last also ends: one of them may differ.
    assert found.kind.count(most) >= DEPTH - 2
    layers = [nodes for nodes, kind in zip(found.members, found.kind, strict=True) if kind == most]
    products = [[n for n in nodes if "addmm" in str(n.target)] for nodes in layers]
    assert {len(found) for found in products} == {4}
    assert len({tuple(str(n.target) for n in nodes) for nodes in layers}) == 1


def test_a_chain_whose_widths_differ_repeats_nowhere() -> None:
    joint = GRAPHS["chain"]()
    found = segment(joint)
    assert len(set(found.kind)) == found.count > 1
    assert all(any(not is_fusible(node) for node in nodes) for nodes in found.members)


def test_what_skips_ahead_is_inside_of_a_segment_or_crosses() -> None:
    joint = GRAPHS["skips"]()
    found = segment(joint)
    cats = [node for node in joint.forward if "cat" in str(node.target)]
    assert len(cats) == 3
    for node in cats:
        for source in node.all_input_nodes:
            base = joint.base(source)
            inside = found.home[base] == found.home[node]
            assert inside or found.crossing[base] >= found.home[node]


def test_layers_are_cut_once_more_where_one_tensor_crosses() -> None:
    joint = joint_of(Gpt(), torch.arange(32).view(2, 16))
    layers, halves = segment(joint), segment(joint, within_layers=True)
    assert halves.count > layers.count
    (run,) = halves.runs
    inside = halves.kind[run[0] : run[1]]
    assert len(set(inside)) == 2
    assert inside[0::2] == inside[:1] * len(inside[0::2])
    covered = [node for members in halves.members for node in members]
    assert sorted(covered, key=str) == sorted(joint.forward, key=str)


class Residuals(nn.Module):
    """Pairs of products around which the input goes, with an activation behind the sum."""

    def __init__(self, after: type[nn.Module]) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Linear(8, width) for width in (12, 16, 20))
        self.narrow = nn.ModuleList(nn.Linear(width, 8) for width in (12, 16, 20))
        self.after = after()

    def forward(self, x: Tensor) -> Tensor:
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = self.after(x + narrow(torch.tanh(wide(x))))
        return x


@pytest.mark.parametrize(
    ("after", "crosses"),
    [
        # Backward reads what comes out of a ReLU, and of GELU what goes in.
        (nn.ReLU, "relu"),
        (nn.GELU, "add"),
    ],
)
def test_what_crosses_is_what_both_sides_read(after: type[nn.Module], crosses: str) -> None:
    joint = joint_of(Residuals(after), torch.randn(256, 8))
    names = [node.name for node in segment(joint).crossing]
    assert any(name.startswith(crosses) for name in names)
    assert not any(name.startswith({"relu": "add", "add": "gelu"}[crosses]) for name in names)
