"""Python runs this at the start of a child of ours: once torch is there, its `compile` is ours.

The `sitecustomize` that would have run without this one runs after it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))


class _WhenTorchIsImported:
    """Finds torch as everybody would, and changes the module right after it has run."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_redirect(module: ModuleType) -> None:
            run(module)
            from deepcompile.child.redirect import install

            install(module)

        spec.loader.exec_module = run_and_redirect  # type: ignore[method-assign]
        return spec


def _run_the_next() -> None:
    rest = [path for path in sys.path if os.path.abspath(path or os.curdir) != _HERE]
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _WhenTorchIsImported())
if os.environ.get("DEEPCOMPILE_CHILD_REPORT"):
    from deepcompile.child.report import report_uncaught

    report_uncaught()
_run_the_next()
