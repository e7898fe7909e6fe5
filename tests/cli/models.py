"""MODELs for the tests of the command line: small, each with one thing to notice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Any, ...]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.down = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.norm(self.up(x)))).softmax(-1)


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x.sin(), 0.5) * 2


class Broken(nn.Module):
    """Three graph breaks, and an attribute that makes it compile again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = x.sin() * self.calls
        if y.sum() > 0:  # a branch on values
            y = y + 1
        print("from the model")
        return y * y.sum().item()


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such input")


def net() -> Made:
    return Net(), (torch.randn(8, 6),)


def dropping() -> Made:
    return Dropping(), (torch.randn(64, requires_grad=True),)


def broken() -> Made:
    return Broken(), (torch.randn(5),)


def raising() -> Made:
    return Raising(), (torch.randn(5),)


def reading() -> Made:
    class Reading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()[: int(x.sum().item())]

    return Reading(), (torch.ones(5),)


def failing() -> Made:
    raise ValueError("no data \x1b[31m")


NUMBER = 3


def leaving() -> Made:
    raise SystemExit(7)
