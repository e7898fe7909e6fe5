"""The compile time of recorded runs as a Chrome trace, which Perfetto shows. Reads files only.

Format: "Trace Event Format" (JSON object form): complete events `X` and instants `i`, times in
microseconds, one process a rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deepcompile.inspect.reader import Event, GraphRecord, Run

_INSTANTS = ("fallback", "graph-break", "pass-failed", "not-partitioned", "memory-budget")
_BUILT = ("build", "codegen")
"""Stages that end, in this order backwards, when a graph is compiled."""
_LONGEST = 200


@dataclass(frozen=True)
class Span:
    """Something that took time; `began` is a time of the system's clock, in seconds."""

    name: str
    category: str
    began: float
    seconds: float
    facts: Mapping[str, Any]


def spans(run: Run) -> tuple[Span, ...]:
    """Captures, graphs, passes, code generation and builds of a run, in order of their start.

    Passes of runs that did not record when they began end where their state was kept.
    """
    compiled = {str(e.fields.get("graph")): e for e in run.events if e.kind == "compiled"}
    found = [span for event in run.events if event.kind == "captured" for span in _capture(event)]
    for graph in run.graphs:
        found.extend(_graph_spans(graph, compiled.get(graph.name)))
    # What contains others starts first or, at the same time, takes longer.
    return tuple(sorted(found, key=lambda span: (span.began, -span.seconds)))


def chrome_trace(runs: Iterable[Run]) -> dict[str, Any]:
    """The document that chrome://tracing and ui.perfetto.dev open."""
    events: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        rank = int(_number(run.info.get("rank")))
        pid = int(_number(run.info.get("pid"))) or number + 1
        label = f"{run.name} rank {rank}"
        events.append(_metadata("process_name", pid, name=label))
        events.append(_metadata("process_sort_index", pid, sort_index=rank))
        events.append(_metadata("thread_name", pid, name="compile"))
        for span in spans(run):
            events.append(
                {
                    "ph": "X",
                    "name": span.name,
                    "cat": span.category,
                    "ts": span.began * 1e6,
                    "dur": span.seconds * 1e6,
                    "pid": pid,
                    "tid": 1,
                    "args": dict(span.facts),
                }
            )
        events.extend(_instant(event, pid) for event in run.events if event.kind in _INSTANTS)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _capture(event: Event) -> Iterator[Span]:
    seconds = _number(event.fields.get("seconds"))
    began = _number(event.fields.get("began")) or event.time - seconds
    name = f"capture g{event.fields.get('number', '?')}"
    yield Span(name, "capture", began, seconds, {})


def _graph_spans(graph: GraphRecord, compiled: Event | None) -> Iterator[Span]:
    passes = [_pass_span(state.name, state.meta) for state in graph.states if state.index]
    stages = list(_stage_spans(compiled)) if compiled is not None else []
    inside = [*passes, *stages]
    if not inside:
        return
    began = min(span.began for span in inside)
    ended = max(span.began + span.seconds for span in inside)
    facts: dict[str, Any] = {"kind": graph.states[0].meta.get("kind", "?")}
    if compiled is not None:
        facts |= {key: compiled.fields.get(key) for key in ("kernels", "externs", "cached")}
    yield Span(graph.name, "graph", began, ended - began, facts)
    yield from inside


def _pass_span(name: str, meta: Mapping[str, Any]) -> Span:
    seconds = _number(meta.get("ms")) / 1e3
    began = _number(meta.get("began")) or _number(meta.get("time")) - seconds
    facts = {key: meta[key] for key in ("status", "reason", "op_delta", "rewrites") if key in meta}
    return Span(name, "pass", began, seconds, facts)


def _stage_spans(compiled: Event) -> Iterator[Span]:
    seconds = compiled.fields.get("seconds")
    if not isinstance(seconds, Mapping):
        return
    end = compiled.time
    for stage in _BUILT:
        if stage in seconds:
            took = _number(seconds[stage])
            yield Span(stage, "stage", end - took, took, {})
            end -= took


def _instant(event: Event, pid: int) -> dict[str, Any]:
    about = str(event.fields.get("reason") or event.fields.get("error") or "")
    return {
        "ph": "i",
        "name": f"{event.kind}: {about[:_LONGEST]}" if about else event.kind,
        "cat": "event",
        "ts": event.time * 1e6,
        "pid": pid,
        "tid": 1,
        "s": "t",
        "args": {"graph": event.fields.get("graph"), "origin": event.fields.get("origin")},
    }


def _metadata(kind: str, pid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": 1, "args": args}


def _number(value: Any) -> float:
    """A recorded number; 0.0 for what is none, as in a damaged record."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return 0.0
    return float(value)
