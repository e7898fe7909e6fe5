"""Reading placements on a mesh: files of a run directory, or plans that a user saved or edited."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError, nearest
from deepcompile.inspect.reader import find_run
from deepcompile.inspect.safe_files import read_json, visible_line

MODEL = "model"
"""The graph of a plan that is of a whole model."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class ShardingRecord:
    """Placements of one graph, or those planned for a whole model.

    Attributes:
        graph: its name; `model` for a whole model.
        kind: of the graph.
        plan: as `deepcompile.Plan.to_dict` gives it; of a hand-written one there may be only `mesh`
            and `parameters`.
        nodes: of a graph: by name what each calls, its placements and the user's line.
        file: where it was found.
    """

    graph: str
    kind: str
    plan: Mapping[str, Any]
    nodes: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    @property
    def mesh(self) -> str:
        return str(self.plan["mesh"])

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the axes of the mesh."""
        pairs = (part.partition("=") for part in self.mesh.split(","))
        return tuple((name.strip(), int(size)) for name, _, size in pairs)

    @property
    def parameters(self) -> Mapping[str, str]:
        """Placements by name, as text."""
        return self.plan["parameters"]

    @property
    def seconds(self) -> Mapping[str, float]:
        """Of a step: total, compute, communication, hidden; 0 where not said, or none of them."""
        return _filled(self.plan.get("seconds", {}), "total", "compute", "communication", "hidden")

    @property
    def memory(self) -> Mapping[str, int]:
        """Of a rank: parameters and saved, and both on one device, 0 where not said; or none."""
        return _filled(
            self.plan.get("memory", {}), "parameters", "one device", "saved", "saved on one device"
        )

    @property
    def moves(self) -> Sequence[Mapping[str, Any]]:
        return self.plan.get("moves", ())

    @property
    def gap(self) -> float | None:
        """How much slower than the bound, relative; None where there is no bound."""
        bound = self.seconds.get("bound", 0.0)
        return max(0.0, self.seconds["total"] / bound - 1.0) if bound else None

    def fact(self, name: str) -> Mapping[str, Any]:
        """More of a parameter."""
        return self.plan.get("facts", {}).get(name, {})


@dataclass(frozen=True)
class ParameterRow:
    """Parameters that are placed alike: one, or those of one name in several layers.

    Attributes:
        name: with `*` for the numbers in which they differ.
        numbers: what the first `*` stands for, as in `0-30,32`; empty for one parameter.
        placements: one for each axis.
        count: how many there are.
        shape: of each; None where it is not known, or differs.
        bytes: that a rank holds of all of them, with gradients and optimizer state.
    """

    name: str
    numbers: str
    placements: str
    count: int
    shape: tuple[int, ...] | None
    bytes: int


@dataclass(frozen=True)
class CollectiveRow:
    """Collectives of one kind on one axis in one phase of a step.

    Attributes:
        bytes: of all of them, of whole tensors on a rank.
        seconds: modelled, of all of them.
        hidden: the seconds that can run beside computation.
    """

    phase: str
    kind: str
    axis: str
    count: int
    bytes: int
    seconds: float
    hidden: float


@dataclass(frozen=True)
class OperationFacts:
    """An operation that takes a parameter, and strategies that it does not have and why."""

    name: str
    op: str
    placements: str
    line: str
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class ParameterReasons:
    """Why a parameter is placed as it is.

    Attributes:
        options: placements that there were to choose from; one where it was decided before.
        dropped: placements that it cannot have, and why.
        operations: what takes it.
    """

    name: str
    placements: str
    shape: tuple[int, ...] | None
    options: tuple[str, ...]
    dropped: tuple[str, ...]
    operations: tuple[OperationFacts, ...]


def read_shardings(
    path: str | os.PathLike[str], notes: list[str] | None = None
) -> list[ShardingRecord]:
    """Of a plan file, a run directory or the newest run of a folder; what is of the model first.

    `notes` gets a line for each file of a run that cannot be read. Raises `RunDirError` for what is
    none of these, or holds no placements.
    """
    place, told = Path(path), [] if notes is None else notes
    if place.is_file():
        return [_record(place.parent, place)]
    run = find_run(place)
    found = []
    for file in sorted((run / "sharding").glob("*.json"), key=_natural):
        try:
            found.append(_record(run, file))
        except RunDirError as error:
            told.append(str(error))
    if not found:
        why = (
            told[0]
            if told
            else (
                "no model was placed on a mesh, or none of its graphs was compiled; see "
                "deepcompile.parallelize"
            )
        )
        raise RunDirError(f"{visible_line(str(run))} has no placements: {why}")
    return sorted(found, key=lambda record: record.graph != MODEL)


def record_of(document: Mapping[str, Any], file: str = "") -> ShardingRecord:
    """Of a document of the run directory, or a plan as it is.

    Raises:
        RunDirError: it is neither.
    """
    plan = document.get("plan", document)
    try:
        record = ShardingRecord(
            str(document.get("graph", MODEL)),
            str(document.get("kind", MODEL)),
            {**plan, "mesh": str(plan["mesh"]), "parameters": dict(plan["parameters"])},
            dict(document.get("nodes", {})),
            visible_line(file),
        )
        axes = record.axes
        for name, placements in record.parameters.items():
            if len(placements.split()) != len(axes):
                raise ValueError(f"{name}: {placements!r} for the axes of {record.mesh}")
        _check(record)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RunDirError(f"{file or 'this'} is no plan of placements: {detail}") from None
    return record


def _record(root: Path, file: Path) -> ShardingRecord:
    try:
        document = read_json(root, file)
    except RunDirError as error:
        raise RunDirError(f"{visible_line(str(file))} is no plan of placements: {error}") from None
    return record_of(document, str(file))


def _check(record: ShardingRecord) -> None:
    """Read all that is shown of a record once, so that what is wrong with it shows here."""
    for name, value in {**record.seconds, **record.memory}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} is {str(value)[:40]!r}, not a number")
    if not all(isinstance(text, str) for text in record.nodes.values()):
        raise ValueError("nodes are not texts")
    record.plan.get("solver", {}).get("method")
    _ = record.gap, parameter_rows(record), collectives(record)
    for name in record.parameters:
        found = _reasons(record, name)
        if not all(isinstance(text, str) for text in (*found.options, *found.dropped)):
            raise ValueError(f"what is said of {name} is no text")


def parameter_rows(record: ShardingRecord, *, each: bool = False) -> list[ParameterRow]:
    """Placements of parameters, those that are alike in several layers together unless `each`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, placements in record.parameters.items():
        groups.setdefault((name if each else folded(name), placements), []).append(name)
    rows = []
    for (kind, placements), names in groups.items():
        facts = [record.fact(name) for name in names]
        shapes = {tuple(fact["shape"]) if "shape" in fact else None for fact in facts}
        numbers = [int(match[0]) for match in map(_NUMBER.search, names) if match]
        rows.append(
            ParameterRow(
                names[0] if len(names) == 1 else kind,
                _ranges(numbers) if len(names) > 1 else "",
                placements,
                len(names),
                next(iter(shapes)) if len(shapes) == 1 else None,
                sum(int(fact.get("bytes", 0)) for fact in facts),
            )
        )
    return rows


def collectives(record: ShardingRecord) -> list[CollectiveRow]:
    """By phase, kind and axis; forward first."""
    totals: dict[tuple[str, str, str], list[float]] = {}
    for move in record.moves:
        total = totals.setdefault(
            (str(move["phase"]), str(move["kind"]), str(move["axis"])), [0, 0, 0.0, 0.0]
        )
        count = int(move.get("count", 1))
        total[0] += count
        total[1] += count * int(move["bytes"])
        total[2] += count * float(move["seconds"])
        total[3] += count * float(move["seconds"]) * bool(move.get("hidden"))
    return [
        CollectiveRow(*key, int(total[0]), int(total[1]), total[2], total[3])
        for key, total in sorted(totals.items(), key=lambda item: (item[0][0] != "forward", item))
    ]


def reasons(records: Iterable[ShardingRecord], name: str) -> list[tuple[str, ParameterReasons]]:
    """(graph, why) for each parameter that `name` is, or is a module or a pattern of.

    Raises:
        RunDirError: it is none; the text has the nearest name.
    """
    records = list(records)
    pattern = re.compile(re.escape(name.rstrip(".")).replace(r"\*", r"[^.]*") + r"(\..*)?")
    found = [
        (record.graph, _reasons(record, parameter))
        for record in records
        for parameter in record.parameters
        if pattern.fullmatch(parameter)
    ]
    if found:
        return found
    known = {p for record in records for parameter in record.parameters for p in _parts(parameter)}
    close = nearest(name, known)
    hint = f"; did you mean {close!r}?" if close else ""
    raise RunDirError(f"no parameter or module {name!r}{hint}")


def _reasons(record: ShardingRecord, parameter: str) -> ParameterReasons:
    fact = record.fact(parameter)
    operations = []
    for operation in fact.get("operations", ()):
        text = record.plan.get("operations", {}).get(operation, "")
        op, placements, line = (*(part.strip() for part in text.split("|", 2)), "", "", "")[:3]
        dropped = tuple(record.plan.get("dropped", {}).get(operation, ()))
        operations.append(OperationFacts(operation, op, placements, line, dropped))
    return ParameterReasons(
        parameter,
        record.parameters[parameter],
        tuple(fact["shape"]) if "shape" in fact else None,
        tuple(fact.get("options", ())),
        tuple(fact.get("dropped", ())),
        tuple(operations),
    )


def folded(name: str) -> str:
    """A name with `*` for each part that is a number."""
    return _NUMBER.sub("*", name)


def _filled(given: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return {**dict.fromkeys(names, 0), **given} if given else {}


def _parts(name: str) -> list[str]:
    """A parameter and the modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _ranges(numbers: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _natural(file: Path) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D+)(\d*)", file.name)]
