"""A job of two ranks that share the layers of a model, and compare it with the model as it is."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

import deepcompile

PLAN = {"up.weight": "S(0)", "down.weight": "S(1)"}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))) + x


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model, x = Mlp(), torch.randn(64, 32)
    with torch.no_grad():
        expected = model(x)
        shared = deepcompile.parallelize(model, 2, plan=PLAN)
        actual = torch.compile(shared)(x)
    wrong = not torch.allclose(expected, actual, rtol=1e-3, atol=1e-4)
    dist.destroy_process_group()
    sys.exit(wrong)


main()
