"""Reading shares of tensors from safetensors files, without reading the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcompile.errors import PartitionError, nearest
from deepcompile.parallel.shares import Ranges


class Checkpoint:
    """Tensors by name, in one file or in several.

    Args:
        path: a `.safetensors` file, a folder of them, or the `.index.json` that lists several.

    Raises:
        PartitionError: where there is none, or the `safetensors` package is missing.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._open = _safe_open()
        self._files: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        for file in _files(Path(path)):
            for name in self._file(file).keys():  # noqa: SIM118 -- a reader, not a dict
                self._where[name] = file

    def find(self, names: Iterable[str]) -> str | None:
        """The first of several names of one tensor that is there."""
        return next((name for name in names if name in self._where), None)

    def nearest(self, name: str) -> str | None:
        """The name that is there and most like another."""
        return nearest(name, self._where)

    def read(self, name: str, shape: tuple[int, ...], ranges: Collection[Ranges]) -> Tensor:
        """The part of a tensor that ranges of each dimension name; only that is read.

        Raises:
            PartitionError: where the tensor has another shape.
        """
        file = self._file(self._where[name])
        if not shape:
            return file.get_tensor(name)
        rows = file.get_slice(name)
        if tuple(rows.get_shape()) != shape:
            raise PartitionError(
                f"{name!r} has shape {tuple(rows.get_shape())} in {self._where[name].name}, but "
                f"{shape} in the model; give the checkpoint of this model"
            )
        return _read(rows, (), tuple(ranges))

    def _file(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = self._open(str(path), framework="pt", device="cpu")
        return self._files[path]


def _read(rows: Any, chosen: tuple[slice, ...], left: tuple[Ranges, ...]) -> Tensor:
    if not left:
        return rows[chosen]
    dim = len(chosen)
    parts = [_read(rows, (*chosen, slice(start, stop)), left[1:]) for start, stop in left[0]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _safe_open() -> Callable[..., Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise PartitionError(
            "reading a checkpoint needs the package safetensors: pip install safetensors"
        ) from None
    return safe_open


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        index = sorted(path.glob("*.index.json"))
        files = _of_index(index[0]) if index else sorted(path.glob("*.safetensors"))
    elif path.name.endswith(".json"):
        files = _of_index(path)
    else:
        files = [path]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise PartitionError(
            f"no safetensors file {missing[0] if missing else path}; give a .safetensors file, a "
            "folder with some, or a model.safetensors.index.json"
        )
    return files


def _of_index(path: Path) -> list[Path]:
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise PartitionError(
            f"{path} is no index of safetensors files; it needs a 'weight_map'"
        ) from None
    return sorted(path.parent / name for name in names)
