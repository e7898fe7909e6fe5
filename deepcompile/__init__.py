"""A graph compiler for PyTorch: `torch.compile(model, backend="deepep")`.

Importing this package imports neither torch nor the compiler; names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Options": "deepcompile.options",
    "DeepCompileError": "deepcompile.errors",
    "OptionError": "deepcompile.errors",
    "PipelineError": "deepcompile.errors",
    "VerificationError": "deepcompile.errors",
    "CompileError": "deepcompile.errors",
    "explain": "deepcompile.explanation",
}

__all__ = [
    "CompileError",
    "DeepCompileError",
    "OptionError",
    "Options",
    "PipelineError",
    "VerificationError",
    "__version__",
    "explain",
    "runtime",
]

if TYPE_CHECKING:
    from deepcompile import runtime
    from deepcompile.errors import (
        CompileError,
        DeepCompileError,
        OptionError,
        PipelineError,
        VerificationError,
    )
    from deepcompile.explanation import explain
    from deepcompile.options import Options


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return importlib.import_module("deepcompile.runtime")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "runtime"})
