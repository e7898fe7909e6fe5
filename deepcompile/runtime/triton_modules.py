"""Loading generated Triton, which reads functions from files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType


def load_source(source: str, folder: Path | None) -> ModuleType:
    """The module of a generated source; the same source gives the same module.

    It becomes a file in `folder`, or where that is None or cannot be written, in one that ends with
    the process.
    """
    name = f"deepcompile_triton_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    path = _written(source, name, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def _written(source: str, name: str, folder: Path | None) -> Path:
    if folder is not None:
        with contextlib.suppress(OSError):
            return _write(source, folder / f"{name}.py")
    return _write(source, Path(_own_folder().name) / f"{name}.py")


def _write(source: str, path: Path) -> Path:
    if path.exists() and path.read_text(encoding="utf-8") == source:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.{id(source)}.tmp")
    partial.write_text(source, encoding="utf-8")
    partial.replace(path)
    return path


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="deepcompile-")
