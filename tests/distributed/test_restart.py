"""Workers that torchrun restarts find each other, and agree again from the first number."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

# Rank 1 ends in the first attempt, before a graph that rank 0 has begun to wait for.
PROGRAM = """
import os, sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
import deepcompile
from deepcompile.runtime.collectives.agreement import agreed_in_world
from deepcompile.runtime.collectives.fingerprint import CollectiveEntry, Fingerprint

folder, node = sys.argv[1:]
count = os.environ["TORCHELASTIC_RESTART_COUNT"]
deepcompile.runtime.init(device="cpu", timeout=30)
rank = dist.get_rank()

def step(name):
    entry = CollectiveEntry("all_reduce", "sum", "f32", name, (0, 1))
    value = torch.ones(())
    agreed_in_world(dist.all_reduce, Fingerprint(name, "v1", (entry,)), timeout=30)(value)
    return value.item()

failed_before = os.path.exists(f"{folder}/failed")
results = [step(f"first, after failure: {failed_before}")]
if not failed_before:
    if rank == 1:
        time.sleep(0.3)
        open(f"{folder}/failed", "w").close()
        os._exit(3)
    if node == "both":
        time.sleep(60)  # until torchrun ends this process
results.append(step("second"))
with open(f"{folder}/{rank}.{node}.{count}", "w") as file:
    file.write(str(results))
deepcompile.runtime.shutdown()
"""


def torchrun(folder: Path, node: str, *arguments: str) -> subprocess.Popen[str]:
    script = folder / "train.py"
    script.write_text(PROGRAM)
    launcher = ("RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval=0.1"]
    return subprocess.Popen(
        [*command, *arguments, str(script), str(folder), node],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(agents: list[subprocess.Popen[str]], seconds: float) -> None:
    """Waits for all; shows what they printed where one failed, and leaves none behind."""
    deadline = time.monotonic() + seconds
    try:
        texts = [agent.communicate(timeout=deadline - time.monotonic())[0] for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # torchrun ends its workers
    codes = [agent.returncode for agent in agents]
    assert codes == [0] * len(agents), "\n".join(text[-3000:] for text in texts)


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("?.*.?")}


def test_a_restart_after_a_failure(tmp_path: Path) -> None:
    agent = torchrun(tmp_path, "one", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
    finish([agent], 90)
    assert written(tmp_path) == {"0.one.1": "[2.0, 2.0]", "1.one.1": "[2.0, 2.0]"}


@pytest.mark.slow
def test_agents_that_count_restarts_differently(tmp_path: Path) -> None:
    """The agent whose worker failed counts one restart, the one that follows it none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"--rdzv-endpoint=127.0.0.1:{probe.getsockname()[1]}"
    arguments = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=job")
    agents = [
        torchrun(tmp_path, "both", *arguments, endpoint, "--max-restarts=2") for _ in range(2)
    ]
    finish(agents, 120)
    results = written(tmp_path)
    assert set(results.values()) == {"[2.0, 2.0]"}
    assert {name[0] for name in results} == {"0", "1"}
    assert {name[-1] for name in results} == {"0", "1"}
