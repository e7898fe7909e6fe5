"""Each example trains, in a process of its own, and its losses are those of eager."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NEEDS = {
    "plain_loop": (),
    "hf_trainer": ("transformers", "accelerate"),
    "hf_accelerate": ("transformers", "accelerate"),
    "lightning_module": ("lightning",),
}
STEPS = 4
# All in one process: each would import torch and what is built on it again.
EACH = """
import importlib, sys, torch
from deepcompile.backend import recording
for name in sys.argv[1:]:
    print("example", name)
    example = importlib.import_module(name)
    for backend in ("eager", "deepep"):
        torch._dynamo.reset()
        with recording() as record:
            example.main(["--steps", "{steps}", "--backend", backend])
        kernels = sum(len(graph.kernels) for graph in record.graphs)
        print("graphs", len(record.graphs), "kernels", kernels, flush=True)
"""


def is_there(name: str) -> bool:
    return all(importlib.util.find_spec(package) for package in NEEDS[name])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels that examples have in common are built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def outputs(cache: Path) -> dict[str, str]:
    """What each example printed that has what it needs: in eager, then compiled."""
    names = [name for name in NEEDS if is_there(name)]
    output = run(["-c", EACH.format(steps=STEPS), *names], cache)
    parts = [part.partition("\n") for part in output.split("example ")[1:]]
    return {name: text for name, _, text in parts}


def run(command: list[str], cache: Path) -> str:
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLES)]),
        "DEEPCOMPILE_CACHE_DIR": str(cache),
        "DEEPCOMPILE_STRICT": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(output: str) -> list[list[float]]:
    found = re.findall(r"^(\d+) steps, loss (\S+) -> (\S+)$", output, re.MULTILINE)
    assert all(int(steps) == STEPS for steps, _, _ in found)
    return [[float(first), float(last)] for _, first, last in found]


@pytest.mark.parametrize("name", NEEDS)
def test_trains_like_eager(name: str, outputs: dict[str, str]) -> None:
    if not is_there(name):
        pytest.skip(f"not installed: pip install {' '.join(NEEDS[name])}")
    eager, compiled = losses(outputs[name])
    assert compiled == pytest.approx(eager, abs=2e-3)
    assert compiled[1] < compiled[0]
    nothing, some = re.findall(r"graphs (\d+) kernels (\d+)", outputs[name])
    assert nothing == ("0", "0")
    assert int(some[0]) >= 2
    assert int(some[1]) >= 2


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_like_one(cache: Path, outputs: dict[str, str]) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(EXAMPLES / "torchrun_parallelize.py")
    shared = run([*launch, script, "--steps", str(STEPS)], cache)
    (sharded, count) = map(int, re.findall(r"(\d+) of (\d+) parameters are sharded", shared)[0])
    assert 0 < sharded < count
    alone = losses(outputs["plain_loop"])[0]
    assert losses(shared)[0] == pytest.approx(alone, abs=2e-3)


def test_every_example_is_run_here() -> None:
    scripts = {p.stem for p in EXAMPLES.glob("*.py") if "def main(" in p.read_text()}
    assert scripts == {*NEEDS, "torchrun_parallelize"}
