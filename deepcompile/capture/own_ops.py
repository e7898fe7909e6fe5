"""Makes torch know the ops that graphs of ours may call, for text that names them."""

from __future__ import annotations

import importlib

import torch

_MODULES = ("markers", "offload", "philox", "rank_ops")


def register_own_ops() -> None:
    """Register the ops `deepcompile::*`, and torch's functional collectives."""
    for name in _MODULES:
        importlib.import_module(f"deepcompile.capture.{name}")
    if torch.distributed.is_available():
        importlib.import_module("torch.distributed._functional_collectives")
