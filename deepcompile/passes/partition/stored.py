"""Choices on disk: what was decided for a graph on a mesh is not decided again.

The key is all that a decision depends on, so that a choice that is found is the one that would be
made: ranks may find it or make it, each for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from deepcompile import __version__
from deepcompile.cost.links import Link
from deepcompile.cost.rates import Rates
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import Placements, parse_placements, placements_text
from deepcompile.passes.partition.formulate import Choice
from deepcompile.passes.partition.options import Option
from deepcompile.passes.partition.problem import Solution
from deepcompile.passes.partition.sites import Sites

FORMAT = 3


def key_of(
    graphs: Sequence[Sites],
    mesh: Mesh,
    rates: Rates,
    links: Sequence[Link],
    limit: float | None,
    optimizer_bytes: float,
    allowed: Mapping[str, Sequence[Placements]],
) -> str:
    """Equal for equal questions, whatever nodes are called."""
    digest = hashlib.sha256()

    def add(*facts: object) -> None:
        digest.update(repr(facts).encode())

    add(FORMAT, __version__, torch.__version__, mesh.axes, sorted(mesh.data))
    add(rates.fingerprint, tuple(map(repr, links)), limit, optimizer_bytes)
    for name, options in sorted(allowed.items()):
        add(name, [placements_text(placements) for placements in options])
    for sites in graphs:
        numbers = {node: number for number, node in enumerate(sites.graph.nodes)}
        for node in sites.graph.nodes:
            args = torch.fx.node.map_arg((node.args, node.kwargs), partial(_numbered, numbers))
            target = node.target if isinstance(node.target, str) else str(node.target)
            add(node.op, "" if node.op == "placeholder" else target, args, _facts(node))
            if node.op == "placeholder":
                add(str(node.target).startswith("tangents"))
        for parameter in sites.parameters:
            placed = parameter.placements
            add(
                parameter.name,
                numbers[parameter.source],
                [(numbers[node], position) for node, position in parameter.sinks],
                None if placed is None else placements_text(placed),
            )
    return digest.hexdigest()


def _numbered(numbers: Mapping[Node, int], node: Node) -> _Number:
    return _Number(numbers[node])


class _Number(int):
    """Of a node, among arguments that may be numbers too."""

    def __repr__(self) -> str:
        return f"%{int(self)}"


def _facts(node: Node) -> object:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [
        (tuple(map(str, v.shape)), v.dtype, v.device.type) if isinstance(v, torch.Tensor) else None
        for v in values
    ]


def load(folder: Path, key: str, graphs: Sequence[Sites]) -> Choice | None:
    """A choice that `store` left; None if there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        data = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if data["format"] == FORMAT:
            return _choice(data, graphs)
    return None


def store(folder: Path, key: str, choice: Choice, graphs: Sequence[Sites]) -> None:
    """Leave a choice for `load`; a folder that cannot be written is no error."""
    text = json.dumps(_data(choice, graphs))
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(folder / f"{key}.json")


def _data(choice: Choice, graphs: Sequence[Sites]) -> dict[str, Any]:
    ways: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    nodes = []
    for node in _steps(graphs):
        option = choice.nodes[node]
        way = (
            tuple(map(placements_text, option.outputs)),
            tuple(map(placements_text, option.inputs)),
        )
        nodes.append((ways.setdefault(way, len(ways)), option.seconds))
    solution = asdict(choice.solution)
    solution["timings"] = {}
    return {
        "format": FORMAT,
        "ways": list(ways),
        "nodes": nodes,
        "parameters": {name: placements_text(p) for name, p in choice.parameters.items()},
        "solution": solution,
    }


def _choice(data: Mapping[str, Any], graphs: Sequence[Sites]) -> Choice:
    ways = [
        (tuple(map(parse_placements, made)), tuple(map(parse_placements, taken)))
        for made, taken in data["ways"]
    ]
    nodes = {
        node: Option(ways[number][0], ways[number][1], seconds)
        for node, (number, seconds) in zip(_steps(graphs), data["nodes"], strict=True)
    }
    parameters = {name: parse_placements(text) for name, text in data["parameters"].items()}
    facts = dict(data["solution"])
    facts["options"], facts["held"] = tuple(facts["options"]), tuple(facts["held"])
    return Choice(nodes, parameters, Solution(**facts))


def _steps(graphs: Sequence[Sites]) -> Iterable[Node]:
    return (node for sites in graphs for node in sites.steps())
