"""What a plan of a model on a mesh says, as data; JSON in and out. Imports no torch."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from deepcompile.errors import PartitionError, nearest
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import Placements, parse_placements, placements_text

FORMAT = 1


@dataclass(frozen=True)
class Move:
    """Collectives of one kind that a step has.

    Attributes:
        kind: `all_gather`, `all_reduce`, `reduce_scatter`, `all_to_all`.
        axis: of the mesh, by name.
        phase: `forward` or `backward`.
        tensor: what moves: the name of a parameter, or of the operation that makes it.
        line: of the user that it comes from.
        bytes: of the whole tensor on one rank, before sharing it out or when all parts are there.
        seconds: modelled, of one.
        count: how many alike there are.
        hidden: whether it can run beside computation: reductions of gradients, gathers of
            parameters before their use.
        near: the parameter that moves, or that is read last before `tensor` is made, by name.
    """

    kind: str
    axis: str
    phase: str
    tensor: str
    line: str
    bytes: int
    seconds: float
    count: int = 1
    hidden: bool = False
    near: str = ""


@dataclass(frozen=True)
class ParameterFacts:
    """Of one parameter.

    Attributes:
        shape: of the whole.
        bytes: that a rank holds, with gradient and optimizer state.
        dropped: placements that it cannot have, and why.
        options: those that there were to choose from.
        operations: names of those that take it, or a view of it.
    """

    shape: tuple[int, ...]
    bytes: int
    dropped: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Placements of a model's parameters on a mesh, and what a step of it takes by the model.

    Attributes:
        mesh: axes and which of them are of data.
        parameters: placements by name, one for each axis. `deepcompile.parallelize(plan=...)`
            reads these and nothing else.
        facts: more of each parameter.
        device: what the estimates are for: "cuda" or "cpu", and the name of its rates.
        seconds: of a step: `total`, `compute`, `communication`, of that `hidden` can run beside
            computation; `bound` is less than any plan takes.
        memory: bytes of a rank: `parameters` (with gradients and optimizer state), `saved` for
            backward, other than by pointwise operations; and `one device` and `saved on one
            device`, what these were without a mesh.
        moves: the collectives.
        operations: of those that take parameters, by name: what they call, their placements, and
            the user's line, as in `aten.mm.default | R, S(1) -> S(1) | model.py:12`.
        dropped: by operation: strategies that were dropped, and why.
        solver: how the plan was found: method, gap, seconds.
    """

    mesh: Mesh
    parameters: Mapping[str, Placements]
    facts: Mapping[str, ParameterFacts] = field(default_factory=dict)
    device: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    operations: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    solver: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """How much slower than the bound, relative."""
        bound = self.seconds.get("bound", 0.0)
        return max(0.0, self.seconds.get("total", 0.0) / bound - 1.0) if bound else 0.0

    @property
    def version(self) -> str:
        """Equal for equal placements on equal meshes."""
        placed = [f"{name} {placements_text(p)}" for name, p in sorted(self.parameters.items())]
        return hashlib.sha256("\n".join([str(self.mesh), *placed]).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "format": FORMAT,
            "mesh": str(self.mesh),
            "data_axes": sorted(self.mesh.data),
            "parameters": {n: placements_text(p) for n, p in self.parameters.items()},
            "facts": {
                name: {
                    "shape": list(f.shape),
                    "bytes": f.bytes,
                    "dropped": list(f.dropped),
                    "options": list(f.options),
                    "operations": list(f.operations),
                }
                for name, f in self.facts.items()
            },
            "device": self.device,
            "seconds": dict(self.seconds),
            "memory": dict(self.memory),
            "moves": [vars(move) for move in self.moves],
            "operations": dict(self.operations),
            "dropped": {name: list(texts) for name, texts in self.dropped.items()},
            "solver": dict(self.solver),
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The reverse of `to_dict`; a hand-written one needs `mesh` and `parameters` only.

        Files of a run directory hold such a mapping as `plan`.

        Raises:
            PartitionError: for what is no plan.
        """
        data = data.get("plan", data)
        try:
            if int(data.get("format", FORMAT)) > FORMAT:
                raise PartitionError(
                    f"the plan is of format {data['format']}, this version reads {FORMAT}"
                )
            return cls(
                Mesh.of(data["mesh"], frozenset(data.get("data_axes", ("dp",)))),
                {str(n): parse_placements(text) for n, text in data["parameters"].items()},
                {
                    n: ParameterFacts(
                        tuple(f["shape"]),
                        f["bytes"],
                        tuple(f.get("dropped", ())),
                        tuple(f.get("options", ())),
                        tuple(f.get("operations", ())),
                    )
                    for n, f in data.get("facts", {}).items()
                },
                data.get("device", ""),
                data.get("seconds", {}),
                data.get("memory", {}),
                tuple(Move(**move) for move in data.get("moves", ())),
                data.get("operations", {}),
                {name: tuple(texts) for name, texts in data.get("dropped", {}).items()},
                data.get("solver", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PartitionError(
                f"no plan of placements: {type(error).__name__}: {error}"
            ) from None

    def save(self, path: str | PathLike[str]) -> None:
        """As JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Of a file that `save` wrote.

        Raises:
            PartitionError: the file cannot be read, or holds something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PartitionError(f"the plan {str(path)!r} cannot be read: {error}") from None
        if not isinstance(data, Mapping):
            raise PartitionError(f"the plan {str(path)!r} is no JSON object")
        return cls.from_dict(data)

    def pinned(self, *patterns: str) -> dict[str, Placements]:
        """Placements of parameters by name, `*` for any part: constraints for another plan.

        Raises:
            PartitionError: a pattern is the name of no parameter.
        """
        found: dict[str, Placements] = {}
        for pattern in patterns or ("*",):
            names = fnmatch.filter(self.parameters, pattern)
            if not names and patterns:
                close = nearest(pattern, self.parameters)
                hint = f"; did you mean {close!r}?" if close else ""
                raise PartitionError(f"the plan has no parameter {pattern!r}{hint}")
            found |= {name: self.parameters[name] for name in names}
        return found

    def diff(self, other: Plan) -> list[str]:
        """Where another plan differs, a line each: `name: S(0) -> R`."""
        lines = []
        if str(self.mesh) != str(other.mesh):
            lines.append(f"mesh: {self.mesh} -> {other.mesh}")
        for name in {**self.parameters, **other.parameters}:
            ours, theirs = (
                placements_text(plan.parameters[name]) if name in plan.parameters else "absent"
                for plan in (self, other)
            )
            if ours != theirs:
                lines.append(f"{name}: {ours} -> {theirs}")
        figures: list[tuple[str, Mapping[str, float], Mapping[str, float]]] = [
            ("seconds", self.seconds, other.seconds),
            ("bytes", self.memory, other.memory),
        ]
        for what, before, after in figures:
            for name in {**before, **after}:
                if before.get(name) != after.get(name):
                    lines.append(f"{what} {name}: {before.get(name)} -> {after.get(name)}")
        return lines

    def __str__(self) -> str:
        total, communication = (self.seconds.get(k, 0.0) for k in ("total", "communication"))
        lines = [
            f"{len(self.parameters)} parameters on {self.mesh} ({self.device})",
            f"step {total * 1e3:.3f} ms by the model, {communication * 1e3:.3f} ms of it "
            f"communication; at most {self.gap:.2%} above the best plan",
            f"a rank holds {self.memory.get('parameters', 0):,} bytes of parameters, gradients and "
            f"optimizer state of {self.memory.get('one device', 0):,}",
        ]
        shown: dict[tuple[str, str], int] = {}
        for name, placements in self.parameters.items():
            kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
            key = kind, placements_text(placements)
            shown[key] = shown.get(key, 0) + 1
        width = max((len(kind) for kind, _ in shown), default=0)
        lines += [f"  {kind:<{width}}  {text}  x{count}" for (kind, text), count in shown.items()]
        moves: dict[tuple[str, str, str], list[float]] = {}
        for move in self.moves:
            entry = moves.setdefault((move.phase, move.kind, move.axis), [0, 0, 0.0])
            entry[0] += move.count
            entry[1] += move.count * move.bytes
            entry[2] += move.count * move.seconds
        for (phase, kind, axis), (count, size, seconds) in sorted(moves.items()):
            lines.append(
                f"  {phase:<8} {int(count):>5} x {kind:<14} on {axis}: {int(size):,} bytes, "
                f"{seconds * 1e3:.3f} ms"
            )
        return "\n".join(lines)
