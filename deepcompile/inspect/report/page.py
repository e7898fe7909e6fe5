"""One HTML file about a run: offline, with no script but its own. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from deepcompile import __version__
from deepcompile.errors import RunDirError
from deepcompile.inspect.memory import PlanRecord, read_plans
from deepcompile.inspect.program import read_programs
from deepcompile.inspect.reader import Event, Run
from deepcompile.inspect.report import memory
from deepcompile.inspect.report.kernels import Row, kernel_rows, line_rows, with_sources
from deepcompile.inspect.report.pictures import Picture, neighbourhood, overview
from deepcompile.inspect.report.states import GraphPages
from deepcompile.inspect.report.text import clean, clean_all, duration, number, packed, size
from deepcompile.inspect.sharding import (
    ShardingRecord,
    collectives,
    parameter_rows,
    read_shardings,
)
from deepcompile.inspect.sharding_svg import svg_of

MOST_PICTURES = 12
"""Graphs that are drawn: the largest."""
MOST_NODES = 300
"""Nodes of a neighbourhood that is drawn."""
_SCRIPTS = ("list.js", "diff.js", "passes.js", "tables.js", "page.js")
_TABS = (
    ("passes", "1 Passes"),
    ("graph", "2 Graph"),
    ("kernels", "3 Kernels"),
    ("memory", "4 Memory"),
    ("sharding", "5 Sharding"),
    ("lines", "6 Lines"),
    ("events", "7 Events"),
)
KEYS = (
    ("1 … 7", "the parts of the report"),
    ("/", "search this part; Enter: next, Shift+Enter: previous, Ctrl+Enter: other states"),
    ("j k", "next and previous pass"),
    ("n p", "next and previous change"),
    ("f", "all lines, or only those around changes"),
    ("u", "passes that changed nothing, too"),
    ("↑ ↓ PgUp PgDn Home End", "move in a list"),
    ("Enter", "open what is active"),
    ("Tab", "from one list to the next"),
    ("x", "hide or show the details"),
    ("t", "light or dark"),
    ("?", "these keys; Esc closes them"),
)


@dataclass(frozen=True)
class Report:
    """A page and what it holds."""

    html: str
    graphs: int
    nodes: int
    kernels: int
    events: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Drawings:
    """The pictures of one graph."""

    name: str
    overview: Picture | None
    around: Picture | None


@dataclass(frozen=True)
class Sharding:
    """Placements of a model or a graph: a picture and rows of text."""

    title: str
    picture: Markup | None
    collectives: tuple[tuple[str, ...], ...]
    parameters: tuple[tuple[str, ...], ...]


def make_report(run: Run, max_nodes: int = MOST_NODES, node: str | None = None) -> Report:
    """The page about `run`, as far as it can be read.

    Args:
        max_nodes: of a neighbourhood that is drawn.
        node: in its middle; else what takes longest by the cost model.
    """
    graphs = [GraphPages(record) for record in run.graphs]
    programs, problems = read_programs(run.path)
    plans = _plans(run, problems)
    rows = kernel_rows(run, programs)
    sources, missing = with_sources(rows, run)
    problems += [text for graph in graphs for text in graph.problems] + missing
    shardings = _shardings(run, problems)
    events = _events(run.events)
    problems = list(dict.fromkeys([*problems, *run.notes]))
    data = {
        "graphs": [graph.summary() for graph in graphs],
        "longest": max((max(row["moving"], row["computing"]) for row in rows), default=0.0),
    }
    packs = [(f"graph-{place}", packed(graph.content())) for place, graph in enumerate(graphs)]
    packs += [("kernels", packed(rows)), ("lines", packed(line_rows(graphs, rows)))]
    packs += [("events", packed(events))]
    packs += [(f"sources-{place}", packed(chunk)) for place, chunk in enumerate(sources)]
    html = _render(
        name=clean(run.name, 300),
        status=clean(run.status, 100),
        subtitle=_subtitle(run, graphs),
        pictures=_pictures(graphs, rows, max_nodes, node),
        charts=memory.charts(programs, plans),
        chart_size=(memory.WIDTH, memory.HEIGHT),
        decisions=memory.decisions(plans),
        shardings=shardings,
        rates=clean(next((p.rates.get("name", "") for p in programs if p.rates), ""), 200),
        kernel_count=len(rows),
        kernel_seconds=duration(sum(row["seconds"] for row in rows)),
        problems=[clean(text) for text in problems],
        page_data=data,
        packed=packs,
    )
    nodes = max((len(graph.input.nodes) for graph in graphs), default=0)
    return Report(html, len(graphs), nodes, len(rows), len(events), tuple(problems))


def _render(page_data: Any, **values: Any) -> str:
    folder = resources.files(__package__) / "templates"

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    script = '"use strict";\n(() => {\n' + "\n".join(map(text, _SCRIPTS)) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.from_string(text("report.html.j2")).render(
        **values,
        version=__version__,
        tabs=_TABS,
        keys=KEYS,
        style=Markup(text("report.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        page_data=_json(page_data),
    )


def _json(value: Any) -> Markup:
    """Data inside of a script element: no character of it ends the element or begins another."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _subtitle(run: Run, graphs: Sequence[GraphPages]) -> str:
    info = run.info
    versions = info.get("versions")
    known = versions.items() if isinstance(versions, dict) else ()
    parts = [f"{name} {version}" for name, version in known]
    parts += [str(info[name]) for name in ("started", "error") if info.get(name)]
    nodes = sum(len(graph.input.nodes) for graph in graphs)
    parts.append(f"{len(graphs)} graphs, {nodes} nodes")
    return clean(" · ".join(parts), 600)


def _plans(run: Run, problems: list[str]) -> list[PlanRecord]:
    if not (run.path / "memory").is_dir():
        return []
    try:
        return read_plans(run.path, problems)
    except RunDirError as error:
        problems.append(str(error))
        return []


def _shardings(run: Run, problems: list[str]) -> list[Sharding]:
    if not (run.path / "sharding").is_dir():
        return []
    try:
        return [_sharding(record) for record in read_shardings(run.path)]
    except RunDirError as error:
        problems.append(str(error))
        return []


def _sharding(record: ShardingRecord) -> Sharding:
    moved = [
        (
            row.phase, row.kind, row.axis, str(row.count), size(row.bytes), duration(row.seconds),
            duration(row.hidden),
        )
        for row in collectives(record)
    ]  # fmt: skip
    placed = [
        (
            row.name + (f" ({row.numbers})" if row.numbers else ""),
            row.placements,
            str(row.count),
            "x".join(map(str, row.shape)) if row.shape is not None else "",
            size(row.bytes) if row.bytes else "",
        )
        for row in parameter_rows(record)
    ]
    title = "The model" if record.graph == "model" else f"Graph {record.graph}"
    return Sharding(
        clean(f"{title} on {record.mesh}", 300),
        Markup(svg_of(record)) if record.graph == "model" else None,
        tuple(tuple(map(clean, row)) for row in moved),
        tuple(tuple(map(clean, row)) for row in placed),
    )


def _pictures(
    graphs: Sequence[GraphPages], rows: Sequence[Row], most: int, node: str | None
) -> list[tuple[int, Drawings]]:
    """Of the largest graphs, and of those that have the node that was asked for."""
    by_size = sorted(range(len(graphs)), key=lambda place: -len(graphs[place].input.nodes))
    drawn = set(by_size[:MOST_PICTURES])
    if node is not None:
        drawn |= {place for place, graph in enumerate(graphs) if node in graph.output.by_name}
    found = []
    for place in sorted(drawn):
        graph = graphs[place]
        centre = node if node in graph.output.by_name else _costliest(graph, rows)
        around = neighbourhood(graph.output, centre, most) if centre else None
        name = clean(graph.name, 300)
        found.append((place, Drawings(name, overview(graph.input, graph.modules), around)))
    return found


def _costliest(graph: GraphPages, rows: Iterable[Row]) -> str | None:
    """The node of the output that takes longest by the cost model; else one in the middle."""
    own = sorted((row for row in rows if row["graph"] == graph.name), key=lambda r: -r["seconds"])
    calls = {n.target: n.name for n in graph.output.nodes if n.op in ("kernel", "batch")}
    for row in own:
        name = calls.get(row["node"], row["node"])
        if name in graph.output.by_name:
            return name
    nodes = [n.name for n in graph.output.nodes if n.op not in ("placeholder", "return")]
    return nodes[len(nodes) // 2] if nodes else None


def _events(events: Sequence[Event]) -> list[dict[str, Any]]:
    begin = events[0].time if events else 0.0
    return [
        {
            "kind": clean(event.kind, 100),
            "graph": clean(event.fields.get("graph", ""), 200),
            "text": clean(_told(event), 400),
            "at": duration(max(0.0, number(event.time - begin))),
            "fields": clean_all(dict(event.fields) | {"pid": event.pid, "rank": event.rank}),
        }
        for event in events
    ]


def _told(event: Event) -> str:
    """What an event says, shortest first: a reason, else its fields."""
    fields = event.fields
    for name in ("reason", "error"):
        if fields.get(name):
            where = fields.get("origin")
            return str(fields[name]) + (f" ({where})" if where else "")
    shown = (f"{name}={value}" for name, value in fields.items() if name != "graph")
    return ", ".join(shown)
