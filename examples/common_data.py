"""What the examples train on: a sequence that a small model learns within a few steps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch.utils.data import TensorDataset

VOCABULARY, LENGTH = 64, 16


def sequences(count: int, seed: int = 0) -> TensorDataset:
    """`count` rows of LENGTH numbers that go up by the same step, modulo VOCABULARY; int64."""
    generator = torch.Generator().manual_seed(seed)
    start, step = torch.randint(VOCABULARY, (2, count, 1), generator=generator)
    return TensorDataset((start + step % 4 * torch.arange(LENGTH)) % VOCABULARY)


def parsed(arguments: Sequence[str] | None) -> tuple[int, str]:
    """`--steps N` and `--backend NAME` of the command line: how long, and what compiles."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50, help="training steps (50)")
    parser.add_argument("--backend", default="deepep", help="of torch.compile, to compare: eager")
    found = parser.parse_args(arguments)
    return found.steps, found.backend


def report(losses: Sequence[float]) -> None:
    """The first loss and the last."""
    print(f"{len(losses)} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
