"""Running compiled graphs on one device or many.

Importing this package does not import torch; `init` and `shutdown` load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "init": "deepcompile.runtime.collectives.start",
    "shutdown": "deepcompile.runtime.collectives.start",
}

__all__ = ["init", "shutdown"]

if TYPE_CHECKING:
    from deepcompile.runtime.collectives.start import init, shutdown


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
