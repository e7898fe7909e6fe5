"""Reading programs of a run directory: steps with bytes and modelled seconds, and memory held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.safe_files import read_json


@dataclass(frozen=True)
class ProgramRecord:
    """The program of one graph, as `deepcompile.program_facts` writes it.

    Attributes:
        graph: its name.
        kind: `forward`, `backward` or `inference`.
        steps: kernels and calls of ATen in order: bytes, operations and modelled seconds.
        rates: of the device, by which seconds are modelled.
        memory: bytes by step, and what is there at the peak.
    """

    graph: str
    kind: str
    steps: tuple[Mapping[str, Any], ...]
    rates: Mapping[str, Any]
    memory: Mapping[str, Any]


def read_programs(run: Path) -> tuple[list[ProgramRecord], list[str]]:
    """The programs of a run directory, and why some files are none. Raises nothing."""
    found: list[ProgramRecord] = []
    problems: list[str] = []
    folder = run / "programs"
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            found.append(_record(run, file))
        except RunDirError as error:
            problems.append(str(error))
    return found, problems


def _record(run: Path, file: Path) -> ProgramRecord:
    data = read_json(run, file)
    return ProgramRecord(
        str(data.get("graph", file.stem)),
        str(data.get("kind", "")),
        tuple(_objects(data.get("steps"))),
        _object(data.get("rates")),
        _object(data.get("memory")),
    )


def _objects(value: object) -> Iterator[Mapping[str, Any]]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
