"""What planning says of models that it cannot trace, and what it traces all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import deepcompile
from deepcompile.errors import PartitionError

HERE = Path(__file__).name


class Between(nn.Module):
    """Two products with something between them."""

    def __init__(self, between: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.between = nn.Linear(16, 32), nn.Linear(32, 16), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.between(self.up(x).relu(), x)).square().mean()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(50, 16), nn.LSTM(16, 16, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.table(tokens))[0].square().mean()


def planned(model: nn.Module, x: torch.Tensor) -> deepcompile.Plan:
    return deepcompile.plan(model, (x,), "tp=2", device="cpu")


def selected(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y[x.sum(-1) > 0]


def overwritten(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[x.sum(-1) > 0] = 0.0
    return y


@pytest.mark.parametrize("between", [selected, overwritten])
def test_masks(between: Callable[..., torch.Tensor]) -> None:
    plan = planned(Between(between), torch.zeros(8, 16))
    assert plan.parameters.keys() == {"up.weight", "up.bias", "down.weight", "down.bias"}
    assert any(str(place).startswith("(Shard") for place in plan.parameters.values())


def unique(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y + torch.unique(x.long()).sum()


def product_of_wrong_sizes(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y @ x


@pytest.mark.parametrize(
    ("between", "says"),
    [(unique, "DynamicOutputShape.*_unique2"), (product_of_wrong_sizes, r"\[8, 32\] X \[8, 16\]")],
)
def test_what_cannot_be_traced_is_told_with_its_line(
    between: Callable[..., torch.Tensor], says: str
) -> None:
    line = between.__code__.co_firstlineno + 1
    with pytest.raises(PartitionError, match=rf"{HERE}:{line}: .*{says}"):
        planned(Between(between), torch.zeros(8, 16))


@pytest.mark.slow
def test_recurrent_modules_need_a_setting_of_dynamo() -> None:
    tokens = torch.zeros(4, 8, dtype=torch.int64)
    with pytest.raises(PartitionError, match=r"LSTM.* Set torch\._dynamo\.config\.allow_rnn=True"):
        planned(Recurrent(), tokens)
    with torch._dynamo.config.patch(allow_rnn=True):
        assert "rnn.weight_hh_l0" in planned(Recurrent(), tokens).parameters
