"""Models that two gloo ranks share, not compiled, equal the same on one device."""

from __future__ import annotations

import copy
import faulthandler
import io
import os
import pickle
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.distributed.tensor import DTensor

import deepcompile
from deepcompile.errors import MeshError, PartitionError, RankError

pytestmark = pytest.mark.distributed

RANKS = 2
LIMIT = 120  # seconds for all cases; a rank that is still there then shows where and ends


class Model(nn.Module):
    """Attention with fused weights, an MLP, a tied head, a frozen parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.head = nn.Linear(16, 8, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("offset", torch.zeros(16))
        self.register_buffer("is_kept", torch.tensor(True))

    def forward(self, tokens):
        x = self.embedding(tokens) + self.offset * self.is_kept
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (6, 8)).transpose(1, 2).chunk(3, 1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


class Plain(nn.Module):
    """Initialised in the order of its modules, so as `parallelize` does it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, tokens):
        return F.cross_entropy(self.layers(self.embedding(tokens)).flatten(0, 1), tokens.flatten())


ROWS = {"embedding.weight": "S(0)", "up.weight": "S(0)", "up.bias": "S(0)", "out.weight": "S(0)"}
COLUMNS = {"embedding.weight": "S(1)", "down.weight": "S(1)", "out.weight": "S(1)"}
PIECES = {
    "qkv.weight": "S(0;16,16,16)", "qkv.bias": "S(0;3x16)", "up.weight": "S(1;8,8)",
    "norm.weight": "S(0)",
}  # fmt: skip
SHARDED = {**ROWS, **PIECES, "down.weight": "S(1)"}


def whole(value: torch.Tensor) -> torch.Tensor:
    from deepcompile.parallel.state import _whole

    return _whole(value, True)


def close(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=lambda m: f"{what}: {m}")


def make(of: Callable[[], nn.Module] = Model) -> nn.Module:
    torch.manual_seed(0)
    return of()


def batches(rank: int, of_data: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    both = torch.randint(0, 8, (3, RANKS, 2, 6), generator=generator)
    return [batch[rank] if of_data else batch.flatten(0, 1) for batch in both]


def train_and_compare(rank: int, axis: str, plan: dict[str, str], **options: Any) -> None:
    """Three steps with clipped gradients: losses, gradients, norms and parameters are the same."""
    twin, model = make(), make()
    if rank:  # values are those of rank 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
            model.offset.add_(1)
            model.is_kept.fill_(False)
    twin.norm.bias.requires_grad_(False)
    model.norm.bias.requires_grad_(False)
    deepcompile.parallelize(model, {axis: RANKS}, plan=plan)
    # The gradient of a key's bias is noise about 0, which a small epsilon would make large.
    options |= {"lr": 0.01, "eps": 1e-3}
    optimizers = [torch.optim.AdamW(m.parameters(), **options) for m in (model, twin)]
    of_data = axis == "dp"
    for mine, all_of_it in zip(batches(rank, of_data), batches(rank, False), strict=True):
        loss, expected = model(mine), twin(all_of_it)
        loss.backward()
        expected.backward()
        loss = loss.detach().clone()
        if of_data:
            dist.all_reduce(loss)
            loss /= RANKS
        close(loss, expected.detach(), "loss")
        theirs = dict(twin.named_parameters())
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (theirs[name].grad is None), name
            if parameter.grad is not None:
                assert parameter.grad.placements == parameter.placements, name
                close(whole(parameter.grad), theirs[name].grad, f"gradient of {name}")
        norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.5) for m in (model, twin)]
        close(norms[0].full_tensor(), norms[1], "norm")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, value in deepcompile.full_state_dict(model).items():
        close(value, twin.state_dict()[name], name)


def tp_rows(rank: int) -> None:
    train_and_compare(rank, "tp", ROWS)


def tp_columns(rank: int) -> None:
    train_and_compare(rank, "tp", COLUMNS, foreach=True)


def tp_pieces(rank: int) -> None:
    train_and_compare(rank, "tp", PIECES, fused=True)


def dp_replicated(rank: int) -> None:
    train_and_compare(rank, "dp", {})


def dp_sharded(rank: int) -> None:
    train_and_compare(rank, "dp", SHARDED)


def copies_and_pickles(rank: int) -> None:
    model = deepcompile.parallelize(make(), RANKS, plan=SHARDED)
    (tokens, *_) = batches(rank, False)
    expected = model(tokens)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.head._parameters["weight"] is again.embedding._parameters["weight"]
        loss = again(tokens)
        assert torch.equal(loss, expected)
        loss.backward()
        assert isinstance(again.qkv._parameters["weight"].grad, DTensor)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = deepcompile.parallelize(Model(), RANKS, plan=SHARDED)
    other.load_state_dict(torch.load(file, weights_only=False))
    assert torch.equal(other(tokens), expected)


def whole_state(rank: int) -> None:
    twin = make()
    model = deepcompile.parallelize(make(), RANKS, plan=SHARDED)
    assert model.get_parameter("qkv.weight").to_local().shape == (24, 16)
    full = deepcompile.full_state_dict(model, rank0_only=True)
    assert list(full) == (list(twin.state_dict()) if rank == 0 else [])
    for name, value in full.items():
        assert torch.equal(value, twin.state_dict()[name]), name
    torch.manual_seed(7 + rank)
    other = deepcompile.parallelize(Model(), RANKS, plan=COLUMNS)
    deepcompile.load_full_state_dict(other, full)  # empty but on rank 0
    for name, value in deepcompile.full_state_dict(other).items():
        assert torch.equal(value, twin.state_dict()[name]), name
    third = deepcompile.parallelize(Model(), RANKS, plan=PIECES)
    third.load_state_dict(twin.state_dict())  # each takes its share
    (tokens, *_) = batches(rank, False)
    close(third(tokens), twin(tokens), "loss")
    with pytest.raises(PartitionError, match="the state dict has no"):
        deepcompile.load_full_state_dict(other, {})


def from_files(rank: int) -> None:
    from safetensors.torch import save_file

    twin = make()
    twin.offset.fill_(3)
    folder = shared_folder()
    if rank == 0:
        state = {k: v for k, v in twin.state_dict().items() if k != "head.weight"}
        save_file(state, str(folder / "model.safetensors"))
    dist.barrier()
    with torch.device("meta"):
        model = Model()
    deepcompile.parallelize(model, RANKS, plan=SHARDED, checkpoint=folder)
    for name, value in deepcompile.full_state_dict(model).items():
        assert torch.equal(value, twin.state_dict()[name]), name
    (tokens, *_) = batches(rank, False)
    close(model(tokens), twin(tokens), "loss")
    mine = folder if rank == 0 else folder / "not here"
    with torch.device("meta"):
        model = Model()
    with pytest.raises(PartitionError, match=r"no safetensors file|rank 1 cannot read"):
        deepcompile.parallelize(model, RANKS, plan=SHARDED, checkpoint=mine)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder)


def initialised(rank: int) -> None:
    """As the model of one device with the seed of rank 0, and each rank draws on as before."""
    with torch.device("meta"):
        model = Plain()
    torch.manual_seed(rank)
    drawn = torch.get_rng_state()
    plan = {"layers.0.weight": "S(0)", "layers.2.weight": "S(1)"}
    deepcompile.parallelize(model, RANKS, plan=plan)
    if rank:
        assert torch.equal(torch.get_rng_state(), drawn)
    twin = make(Plain)
    for name, value in deepcompile.full_state_dict(model).items():
        assert torch.equal(value, twin.state_dict()[name]), name


def checkpoints(rank: int) -> None:
    """Saved by torch with one plan and read with another, sharded pieces and optimizers too."""
    import torch.distributed.checkpoint as dcp

    def trained(plan: dict[str, str]) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = deepcompile.parallelize(make(), RANKS, plan=plan)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
        for tokens in batches(rank, False)[:2]:
            model(tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    folder = shared_folder()
    first = trained(ROWS)
    dcp.save({"model": first[0].state_dict()}, checkpoint_id=folder / "plain")
    second = deepcompile.parallelize(Model(), RANKS, plan=COLUMNS)
    read = {"model": second.state_dict()}
    dcp.load(read, checkpoint_id=folder / "plain")
    second.load_state_dict(read["model"])
    expected = deepcompile.full_state_dict(first[0])
    for name, value in deepcompile.full_state_dict(second).items():
        assert torch.equal(value, expected[name]), name

    pieces = trained(SHARDED)
    portable = deepcompile.portable_state_dict(state(*pieces))
    dcp.save(portable, checkpoint_id=folder / "pieces")
    other = trained({**COLUMNS, "qkv.weight": "S(1)"})
    with torch.no_grad():
        for parameter in other[0].parameters():
            parameter.zero_()
    loaded = deepcompile.portable_state_dict(state(*other))
    dcp.load(loaded, checkpoint_id=folder / "pieces")
    loaded = deepcompile.place_state_like(loaded, state(*other))
    other[0].load_state_dict(loaded["model"])
    other[1].load_state_dict(loaded["optimizer"])
    last = batches(rank, False)[2]
    for model, optimizer in (pieces, other):
        model(last).backward()
        optimizer.step()
    expected = deepcompile.full_state_dict(pieces[0])
    for name, value in deepcompile.full_state_dict(other[0]).items():
        close(value, expected[name], name)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder)


def compiled_by_another_backend(rank: int) -> None:
    torch._dynamo.reset()
    twin = make()
    model = deepcompile.parallelize(make(), RANKS, plan=SHARDED)
    (tokens, *_) = batches(rank, False)
    loss, expected = torch.compile(model, backend="aot_eager", fullgraph=True)(tokens), twin(tokens)
    close(loss, expected, "loss")
    loss.backward()
    expected.backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad.placements == parameter.placements, name
        close(whole(parameter.grad), theirs[name].grad, name)


def mistakes_are_everyones(rank: int) -> None:
    """What only one rank notices is an error on all, and none is left waiting."""
    with pytest.raises(MeshError, match="has 4 ranks, but there are 2 processes"):
        deepcompile.parallelize(Model(), 4, plan={})
    mine = {"up.weight": "S(0)"} if rank else {"up.wieght": "S(0)"}
    with pytest.raises(PartitionError, match=r"did you mean 'up\.weight'"):
        deepcompile.parallelize(Model(), RANKS, plan=mine)
    with pytest.raises((MeshError, PartitionError), match="tp=3 has 3 ranks, but there are 2"):
        deepcompile.parallelize(Model(), 3 if rank else 2, plan={})
    with pytest.raises(MeshError, match=r"rank 1 gives .* another mesh than rank 0: tp=2 "):
        deepcompile.parallelize(Model(), f"tp={RANKS}" if rank else f"dp={RANKS},tp=1", plan={})
    with pytest.raises(RankError, match=r"rank 1 has another model .*\(4, 3\)"):
        deepcompile.parallelize(nn.Linear(4 - rank, 4), RANKS, plan={})
    model = deepcompile.parallelize(Model(), RANKS, plan={} if rank else ROWS)  # that of rank 0
    assert model.get_parameter("up.weight").to_local().shape == (16, 16)


CASES = {
    case.__name__: case
    for case in (
        tp_rows, tp_columns, tp_pieces, dp_replicated, dp_sharded, copies_and_pickles, whole_state,
        from_files, initialised, checkpoints, compiled_by_another_backend, mistakes_are_everyones,
    )
}  # fmt: skip


def shared_folder() -> Path:
    """The same new folder on both ranks."""
    made = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    return Path(made[0])


def work(rank: int, port: int, results: Any) -> None:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", rank=rank, world_size=RANKS, timeout=timedelta(seconds=LIMIT / 2)
    )
    for name, case in CASES.items():
        try:
            case(rank)
            results.put((name, rank, ""))
        except BaseException as error:
            results.put((name, rank, f"{type(error).__name__}: {error}"))
            break  # the other rank may be left in a collective
    results.close()
    results.join_thread()
    os._exit(0)  # without waiting for threads of a process group whose peer is gone


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[int, str]]:
    """What each case did on each rank; all run in one pair of processes, to start them once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=work, args=(rank, port, results), daemon=True)
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT + 20
    for process in processes:
        process.join(max(deadline - time.monotonic(), 1))
        if process.is_alive():
            process.kill()
    found: dict[str, dict[int, str]] = {name: {} for name in CASES}
    while not results.empty():
        name, rank, error = results.get()
        found[name][rank] = error
    return found


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(outcomes, name):
    assert outcomes[name] == {0: "", 1: ""}
