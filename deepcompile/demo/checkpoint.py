"""Where a training stands, as a file: it goes on from there as if it had not stopped."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from deepcompile.demo.model import ModelConfig
from deepcompile.demo.train import Comparison, Settings, Trainee

SCHEMA = 1


class CheckpointError(RuntimeError):
    """A file that is no checkpoint of a training, or one of another training."""


def save(path: Path, comparison: Comparison) -> None:
    """Write both runs whole, or leave the file that is there as it was."""
    state = {
        "schema": SCHEMA,
        "settings": dataclasses.asdict(comparison.settings),
        "runs": [_state(trainee) for trainee in (comparison.reference, comparison.compiled)],
    }
    temporary = path.with_name(f".{path.name}.new")
    torch.save(state, temporary)
    os.replace(temporary, path)


def read(path: Path) -> dict[str, Any]:
    """What `save` wrote; only numbers, text and tensors are read, no code.

    Raises:
        CheckpointError: the file is none.
    """
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # whatever the file holds in place of a checkpoint
        raise CheckpointError(f"{path} is no checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is no checkpoint of this version")
    return state


def settings_of(state: dict[str, Any], steps: int | None) -> Settings:
    """The settings that a checkpoint was made with, for so many steps in all."""
    kept = dict(state["settings"])
    kept["model"] = ModelConfig(**kept["model"])
    return Settings(**kept | ({"steps": steps} if steps is not None else {}))


def restore(comparison: Comparison, state: dict[str, Any]) -> None:
    """Put both runs where they were.

    Raises:
        CheckpointError: the checkpoint is of other runs.
    """
    runs = (comparison.reference, comparison.compiled)
    names = [kept["name"] for kept in state["runs"]]
    if names != [trainee.name for trainee in runs]:
        raise CheckpointError(f"the checkpoint compares {names[1]} with {names[0]}")
    for trainee, kept in zip(runs, state["runs"], strict=True):
        trainee.module.load_state_dict(kept["module"])
        trainee.optimizer.load_state_dict(kept["optimizer"])
        trainee.losses[:] = kept["losses"]
        trainee.seconds[:] = kept["seconds"]
        trainee.held_out.update(kept["held_out"])


def _state(trainee: Trainee) -> dict[str, Any]:
    return {
        "name": trainee.name,
        "module": trainee.module.state_dict(),
        "optimizer": trainee.optimizer.state_dict(),
        "losses": trainee.losses,
        "seconds": trainee.seconds,
        "held_out": trainee.held_out,
    }
