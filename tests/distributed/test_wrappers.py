"""Models compiled inside DDP and FSDP2, and compiled wrappers, equal eager on two gloo ranks."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn

pytestmark = pytest.mark.distributed

RANKS = 2


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, width: int = 16, classes: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


OPTIONS = {"strict": True}


def compiled(module):
    torch._dynamo.reset()
    return torch.compile(module, backend="deepep", options=OPTIONS)


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def ddp_of_compiled(model):
    return nn.parallel.DistributedDataParallel(compiled(model))


def compiled_ddp(model):
    return compiled(nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001))


def compiled_fsdp(model):
    return compiled(sharded(model))


def fsdp_of_compiled_layers(model):
    for layer in model.layers:
        layer.compile(backend="deepep", options=OPTIONS)
    return sharded(model)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    f.__name__: f for f in (ddp_of_compiled, compiled_ddp, compiled_fsdp, fsdp_of_compiled_layers)
}


def steps(model: nn.Module, batches: list[torch.Tensor], average: bool) -> list[float]:
    """Losses of SGD steps; `average` averages gradients over ranks as the wrappers do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for tokens in batches:
        optimizer.zero_grad()
        loss = model(tokens)
        loss.backward()
        if average:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= RANKS
        optimizer.step()
        losses.append(loss.item())
    return losses


def check(name: str, rank: int) -> None:
    torch.manual_seed(0)
    model = Model()
    twin = copy.deepcopy(model)
    torch.manual_seed(100 + rank)
    batches = [torch.randint(0, 8, (2, 6)) for _ in range(3)]
    expected = steps(model, batches, average=True)
    got = steps(WRAPPERS[name](twin), batches, average=False)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        whole = q.full_tensor() if hasattr(q, "full_tensor") else q
        torch.testing.assert_close(whole, p, rtol=1e-4, atol=1e-5)


def work(rank: int, port: int, names: list[str], results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # Small buckets, so that Dynamo splits the graph of a small model at their borders.
    dist._DEFAULT_FIRST_BUCKET_BYTES = 512
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    for name in names:
        try:
            check(name, rank)
            results.put((name, rank, ""))
        except Exception as error:
            results.put((name, rank, f"{type(error).__name__}: {error}"))
            break  # the other rank may be left in a collective
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """What each wrapper that was selected did on each rank, in one pair of processes."""
    items = [item for item in request.session.items if item.module is request.module]
    names = [item.callspec.params["name"] for item in items]
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
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    found: dict[str, list[str]] = {name: [] for name in WRAPPERS}
    while not results.empty():
        name, _, error = results.get()
        found[name].append(error)
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in ("compiled_ddp", "compiled_fsdp")))
        for n in WRAPPERS
    ],
)
def test_equals_eager(outcomes, name):
    assert outcomes[name] == ["", ""]
