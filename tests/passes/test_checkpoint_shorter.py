"""A deep model's choices, simulated on fewer of its layers, cost what they cost in all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompile.passes.checkpoints import place
from deepcompile.passes.checkpoints.forms import Form
from deepcompile.passes.checkpoints.joint import Joint
from deepcompile.passes.checkpoints.place import Options, alternatives, finer
from deepcompile.passes.checkpoints.shorter import Shorter
from tests.passes.checkpoint_graphs import joint_of

DEPTH = 15


@pytest.fixture(autouse=True)
def groups_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the middle of a run as many layers stay as may go together."""
    monkeypatch.setattr(place, "GROUPS", (2,))


class Half(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(16, inside), nn.Linear(inside, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(nn.functional.gelu(self.wide(x)))


def layer(halves: bool) -> nn.Module:
    return nn.Sequential(Half(32), Half(48)) if halves else Half(32)


class Deep(nn.Module):
    """Equal layers, which may all read what is made of an input, or give one result out."""

    def __init__(
        self,
        depth: int = DEPTH,
        halves: bool = False,
        read: bool = False,
        given: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.layers = nn.ModuleList(layer(halves) for _ in range(depth))
        self.read, self.given = read, given

    def forward(self, x: Tensor) -> Tensor:
        side = torch.tanh(x) if self.read else None
        x = self.first(x)
        results = []
        for layer in self.layers:
            x = layer(x if side is None else x * side)
            results.append(x)
        return torch.stack(results) if self.given else x


def graph(**kwargs: Any) -> Joint:
    return joint_of(Deep(**kwargs), torch.randn(256, 16))


def whole(joint: Joint, forms: tuple[Form, ...], monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    monkeypatch.setattr(place, "shorter", lambda *args: None)
    return alternatives(joint, forms)


def check_same(short: Options, full: Options) -> None:
    assert full.shorter is None
    assert len(short.layers) == len(full.layers)
    for mine, theirs in zip(short.layers, full.layers, strict=True):
        assert [replace(choice, seconds=0.0) for choice in mine] == [
            replace(choice, seconds=0.0) for choice in theirs
        ]
        assert [c.seconds for c in mine] == pytest.approx([c.seconds for c in theirs])


@pytest.mark.parametrize(
    ("forms", "read"), [((), False), ((), True), (("bf16",), False), (("host",), False)]
)
def test_figures_are_those_of_the_whole_graph(
    forms: tuple[Form, ...], read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short,) = alternatives(graph(read=read), forms)
    assert short.shorter is not None
    assert short.shorter.segments.count < short.segments.count * 2 // 3
    check_same(short, whole(graph(read=read), forms, monkeypatch)[0])


@pytest.mark.slow
def test_figures_of_halves_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    short = finer(alternatives(graph(halves=True))[0])
    full = finer(whole(graph(halves=True), (), monkeypatch)[0])
    assert len(short) == len(full) == 1
    assert short[0].shorter is not None
    assert short[0].segments.count >= DEPTH * 2
    check_same(short[0], full[0])


def test_few_layers_are_simulated_as_they_are() -> None:
    assert alternatives(graph(depth=8))[0].shorter is None


def test_layers_whose_results_go_elsewhere_are_not_left_out() -> None:
    for found in alternatives(graph(given=True)):
        assert found.shorter is None


class TwoBack(nn.Module):
    """Layers that read what the one before the last made, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(24))

    def forward(self, x: Tensor) -> Tensor:
        before = x
        for each in self.layers:
            before, x = x, torch.tanh(each(x)) + before
        return x


class Apart(nn.Module):
    """Layers that each add something small to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.layers = nn.ModuleList(layer(halves=False) for _ in range(20))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), torch.zeros(())
        for each in self.layers:
            x = each(x)
            total = total + x.square().mean()
        return x + total


@pytest.mark.parametrize("made", [TwoBack, pytest.param(Apart, marks=pytest.mark.slow)])
def test_figures_of_graphs_that_are_not_quite_regular(
    made: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(256, 16)
    found = alternatives(joint_of(made(), x))
    full = whole(joint_of(made(), x), (), monkeypatch)
    assert len(found) == len(full)
    for mine, theirs in zip(found, full, strict=True):
        check_same(mine, theirs)


def test_a_shorter_graph_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = place.shorter

    def wrong(*args: Any) -> Shorter | None:
        found = made(*args)
        assert found is not None
        return replace(found, more=[bytes_ + 4 for bytes_ in found.more])

    monkeypatch.setattr(place, "shorter", wrong)
    (found,) = alternatives(graph())
    assert found.shorter is None
    check_same(found, whole(graph(), (), monkeypatch)[0])
