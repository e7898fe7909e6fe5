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
    "MeshError": "deepcompile.errors",
    "PartitionError": "deepcompile.errors",
    "RankError": "deepcompile.errors",
    "explain": "deepcompile.explanation",
    "parallelize": "deepcompile.parallel.api",
    "plan": "deepcompile.parallel.planning",
    "Plan": "deepcompile.passes.partition.plan",
    "full_state_dict": "deepcompile.parallel.state",
    "load_full_state_dict": "deepcompile.parallel.state",
    "portable_state_dict": "deepcompile.parallel.state",
    "place_state_like": "deepcompile.parallel.state",
}

__all__ = [
    "CompileError",
    "DeepCompileError",
    "MeshError",
    "OptionError",
    "Options",
    "PartitionError",
    "PipelineError",
    "Plan",
    "RankError",
    "VerificationError",
    "__version__",
    "explain",
    "full_state_dict",
    "load_full_state_dict",
    "parallelize",
    "place_state_like",
    "plan",
    "portable_state_dict",
    "runtime",
]

if TYPE_CHECKING:
    from deepcompile import runtime
    from deepcompile.errors import (
        CompileError,
        DeepCompileError,
        MeshError,
        OptionError,
        PartitionError,
        PipelineError,
        RankError,
        VerificationError,
    )
    from deepcompile.explanation import explain
    from deepcompile.options import Options
    from deepcompile.parallel.api import parallelize
    from deepcompile.parallel.planning import plan
    from deepcompile.parallel.state import (
        full_state_dict,
        load_full_state_dict,
        place_state_like,
        portable_state_dict,
    )
    from deepcompile.passes.partition.plan import Plan


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
