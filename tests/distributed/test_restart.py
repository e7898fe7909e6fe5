"""Workers that torchrun restarts find each other, and agree again from the first number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

PROGRAM = """
import os, sys
import torch, torch.distributed as dist
torch.set_num_threads(1)
import deepcompile
from deepcompile.runtime.collectives.agreement import agreed_in_world
from deepcompile.runtime.collectives.fingerprint import CollectiveEntry, Fingerprint

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
deepcompile.runtime.init(device="cpu", timeout=20)
rank = dist.get_rank()

def step(name):
    entry = CollectiveEntry("all_reduce", "sum", "f32", name, (0, 1))
    value = torch.ones(())
    agreed_in_world(dist.all_reduce, Fingerprint(name, "v1", (entry,)), timeout=20)(value)
    return value.item()

results = [step("first of attempt %d" % attempt)]
if attempt == 0 and rank == 1:
    os._exit(3)
try:
    results.append(step("second"))
except Exception as error:
    os._exit(4)
with open(f"{sys.argv[1]}/{rank}.{attempt}", "w") as file:
    file.write(str(results))
deepcompile.runtime.shutdown()
"""


def test_a_restart_after_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "RANK"))
    }
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    written = {path.name: path.read_text() for path in tmp_path.glob("?.?")}
    assert written == {"0.1": "[2.0, 2.0]", "1.1": "[2.0, 2.0]"}
