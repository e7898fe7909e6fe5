"""Rules of operations; importing this registers all of them. See `partition.strategy`."""

from __future__ import annotations

from . import (  # noqa: F401
    attention,
    creation,
    experts,
    indexing,
    joining,
    norms,
    planes,
    pointwise,
    products,
    random,
    reductions,
    views,
)
from .find import rule_of as rule_of
