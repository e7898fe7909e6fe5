"""The environment of a child process in which every `torch.compile` is ours. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deepcompile.options import ENV_PREFIX

CHILD_PREFIX = f"{ENV_PREFIX}CHILD_"
BACKEND = f"{CHILD_PREFIX}BACKEND"
"""`eager`: every `torch.compile` runs without any compiler."""
REPORT = f"{CHILD_PREFIX}REPORT"
"""A folder in which each process leaves what it saw; see `deepcompile.child.report`."""
CHECK = f"{CHILD_PREFIX}CHECK"
"""`numerics`: calls of compiled graphs are compared with eager, and end the process on a mismatch.
`capture`: and graphs are kept, with their inputs, where they fail in any way. `keep`: all graphs
are kept, with the inputs of their first call, and none is compared."""

_ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent / "site"


def child_environment(
    options: Mapping[str, str],
    environ: Mapping[str, str] | None = None,
    *,
    redirect: bool = True,
) -> dict[str, str]:
    """The variables for a child process whose compiles all go to deepcompile.

    A `sitecustomize` of ours comes first on PYTHONPATH; it runs the one that would have run without
    it. Python that is told to ignore the environment (`-E`, `-I`, `-S`) stays as it is.

    Args:
        options: by name, as text: `{"opt_limit": "3"}`; an empty text unsets one. Names that
            begin with `DEEPCOMPILE_` are taken as they are.
        environ: what the child would have; default: that of this process.
        redirect: False for a child that calls our backend itself.
    """
    found = dict(os.environ if environ is None else environ) | variables(options)
    own = [str(SITE)] if redirect else []
    # Where the package is not installed, the child could not import it from another directory.
    last = [] if _ROOT.name in ("site-packages", "dist-packages") else [str(_ROOT)]
    before = [p for p in found.get("PYTHONPATH", "").split(os.pathsep) if p]
    paths = [*own, *(p for p in before if p not in own), *(p for p in last if p not in before)]
    found["PYTHONPATH"] = os.pathsep.join(paths)
    return {name: value for name, value in found.items() if value or not _is_ours(name)}


def variables(options: Mapping[str, str]) -> dict[str, str]:
    """Options by name as the variables that set them."""
    return {
        name if _is_ours(name) else ENV_PREFIX + name.upper(): value
        for name, value in options.items()
    }


def _is_ours(name: str) -> bool:
    return name.startswith(ENV_PREFIX)
