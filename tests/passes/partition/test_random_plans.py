"""Small models under random plans: losses, gradients and dropout masks are those of one device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.fx import GraphModule

from deepcompile.capture import philox
from deepcompile.ir.mesh import Mesh
from deepcompile.passes.partition.lower import Lowering
from tests.passes.partition.random_plans import (
    RandomPlan,
    compare,
    inputs_like,
    joint_graphs,
    sites_of,
)


class Decoder(nn.Module):
    """A layer with grouped heads of keys, dropout, a gated product and a head over a vocabulary."""

    def __init__(self, heads: int = 4, few: int = 2, native: bool = False) -> None:
        super().__init__()
        self.heads, self.few, self.native = heads, few, native
        width, self.size = 32, 8
        self.table = nn.Embedding(64, width)
        self.query = nn.Linear(width, heads * self.size, bias=False)
        self.keys = nn.Linear(width, 2 * few * self.size)
        self.back = nn.Linear(heads * self.size, width, bias=False)
        self.wide = nn.Linear(width, 64)
        self.narrow = nn.Linear(32, width)
        self.norm, self.norm2 = nn.LayerNorm(width), nn.RMSNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        batch, length, _ = x.shape
        y = self.norm(x)
        query = self.query(y).view(batch, length, self.heads, self.size).transpose(1, 2)
        keys, values = (
            part.view(batch, length, self.few, self.size).transpose(1, 2)
            for part in self.keys(y).chunk(2, -1)
        )
        if not self.native:
            group = self.heads // self.few
            keys, values = (
                part[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2)
                for part in (keys, values)
            )
        y = F.scaled_dot_product_attention(
            query, keys, values, is_causal=True, enable_gqa=self.native
        )
        x = x + F.dropout(self.back(y.transpose(1, 2).flatten(2)), 0.2)
        gate, up = self.wide(self.norm2(x)).chunk(2, -1)
        x = x + self.narrow(F.silu(gate) * up)
        logits = x @ self.table.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.batch = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.groups = nn.GroupNorm(4, 8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = F.relu(self.batch(self.first(x)))
        x = F.max_pool2d(F.silu(self.groups(self.deep(x))), 2)
        x = F.interpolate(self.up(x), scale_factor=2)
        return F.cross_entropy(self.last(F.dropout(x.mean((2, 3)), 0.1)), labels)


class Experts(nn.Module):
    """Each row goes to the expert that a router says, by a dense choice."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.up = nn.Parameter(torch.randn(4, 16, 32) / 4)
        self.down = nn.Parameter(torch.randn(4, 32, 16) / 6)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        dense = torch.zeros(x.shape[0], 4).scatter(1, chosen, weights)
        rows = torch.bmm(F.gelu(torch.bmm(x.expand(4, -1, -1), self.up)), self.down)
        return (rows * dense.t()[:, :, None]).sum(0).square().mean()


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "decoder": lambda: (Decoder(), (torch.randint(0, 64, (2, 8)),)),
    "decoder of native groups": lambda: (Decoder(4, 2, True), (torch.randint(0, 64, (2, 8)),)),
    "images": lambda: (Images(), (torch.randn(4, 3, 16, 16), torch.randint(0, 8, (4,)))),
    "experts": lambda: (Experts(), (torch.randn(8, 16),)),
}


def captured(name: str) -> GraphModule:
    torch.manual_seed(0)
    model, args = MODELS[name]()
    (joint,) = joint_graphs(model, args, {})
    return joint


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] * (name in ("images", "decoder of native groups"))
        )
        for name in MODELS
    ],
)
def test_any_plan_computes_what_one_device_does(name: str) -> None:
    joint = captured(name)
    values, sites = inputs_like(joint, 8), sites_of(joint)
    for text, seeds in (("tp=2", 2), ("tp=4", 2), ("a=2,b=2", 1)):
        for seed in range(seeds):
            plan = RandomPlan(sites, Mesh.of(text, ()), seed)
            assert not compare(joint, values, plan), f"{text}, seed {seed}"


class Masks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = F.dropout(torch.ones_like(x), 0.4)
        noise = torch.randn_like(x)
        return ((x @ self.weight) * mask).sum(), mask + noise


@pytest.mark.parametrize("text", ["tp=2", "tp=4", "a=2,b=2"])
def test_random_numbers_are_those_of_one_device_to_the_bit(text: str) -> None:
    (joint,) = joint_graphs(Masks(), (torch.randn(4, 8),), {})
    values, sites = inputs_like(joint, 8), sites_of(joint)
    torch.manual_seed(7)
    expected = next(
        value for value in GraphModule(joint, joint.graph)(*values.values()) if value.dim() == 2
    )
    parts = 0
    for seed in range(6):
        plan = RandomPlan(sites, Mesh.of(text, ()), seed)
        found = compare(joint, values, plan, exactly=expected)
        assert not found
        graph = Lowering(
            sites, plan.mesh, plan.mesh.names, plan.choice, plan.options.candidates.rules,
            plan.mover,
        ).run()  # fmt: skip
        parts += any(
            node.target in (philox.philox_uniform_part, philox.philox_normal_part)
            for node in graph.nodes
        )
    assert parts >= 3


def test_ranks_of_data_axes_draw_different_numbers() -> None:
    (joint,) = joint_graphs(Masks(), (torch.randn(4, 8),), {})
    values, sites = inputs_like(joint, 8), sites_of(joint)
    mesh = Mesh.of("dp=2,tp=2")
    plan = RandomPlan(sites, mesh, 0, shared=0.0)
    masks = plan.results(joint, values, seed=3)
    torch.testing.assert_close(masks[0][1], masks[1][1], rtol=0, atol=0)
    torch.testing.assert_close(masks[2][1], masks[3][1], rtol=0, atol=0)
    assert not torch.equal(masks[0][1], masks[2][1])
