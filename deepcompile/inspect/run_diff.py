"""What differs between states of a graph, and between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.graph_diff import GraphDiff, diff_graphs
from deepcompile.inspect.reader import GraphRecord, Run, State
from deepcompile.inspect.safe_files import visible_line
from deepcompile.inspect.states import (
    graph_at,
    graph_named,
    kept_state,
    state_before,
    state_named,
    state_title,
)


@dataclass(frozen=True)
class Comparison:
    """Two states of a graph, and what differs."""

    graph: str
    before: str
    after: str
    diff: GraphDiff


@dataclass(frozen=True)
class RunDiff:
    """What differs between two runs.

    Attributes:
        facts: of run.json: versions, pipeline, options, as (before, after).
        graphs: those that correspond, after the same pass or their last one.
        alone: (run, graph) that only one of them has.
    """

    facts: Mapping[str, tuple[str, str]]
    graphs: tuple[Comparison, ...]
    alone: tuple[tuple[str, str], ...]


def compare_step(graph: GraphRecord, state: State) -> Comparison | None:
    """What one pass did; None where nothing was kept before it.

    Raises:
        RunDirError: a text cannot be read.
    """
    before = state_before(graph, state)
    if before is None:
        return None
    found = diff_graphs(graph_at(before), graph_at(state))
    return Comparison(graph.name, state_title(before), state_title(state), found)


def compare_states(graph: GraphRecord, words: Sequence[str]) -> Comparison:
    """Two states by their names; of one, with the one before it.

    Raises:
        RunDirError: the graph has no such state, or its text cannot be read.
    """
    states = [state_named(graph, word) for word in words]
    if len(states) == 1:
        (after,) = states
        before = state_before(graph, after)
        if before is None:
            raise RunDirError(f"{state_title(after)} is the first state of graph {graph.name}")
        # A pass without change keeps no text: it is compared with itself.
        states = [before, after]
    old, new = (graph_at(kept_state(graph, state)) for state in states)
    titles = [state_title(state) for state in states]
    return Comparison(graph.name, titles[0], titles[1], diff_graphs(old, new))


def compare_runs(before: Run, after: Run, graph: str | None, at: str | None) -> RunDiff:
    """Graphs of two runs after the pass `at`, or as they are last; of one name only, or all.

    Raises:
        RunDirError: they have no graph to compare, no such pass, or a text cannot be read.
    """
    pairs, alone = _pairs(before, after, graph)
    found = []
    for old, new in pairs:
        title = old.name if old.name == new.name else f"{old.name} -> {new.name}"
        left, right = (
            kept_state(record, state_named(record, at)) if at else record.last_text
            for record in (old, new)
        )
        diff = diff_graphs(graph_at(left), graph_at(right))
        names = f"{before.name} {state_title(left)}", f"{after.name} {state_title(right)}"
        found.append(Comparison(title, names[0], names[1], diff))
    if not found and not alone:
        raise RunDirError(f"{before.name} and {after.name} have no graph to compare")
    return RunDiff(dict(_facts(before, after)), tuple(found), tuple(alone))


def _pairs(
    before: Run, after: Run, name: str | None
) -> tuple[list[tuple[GraphRecord, GraphRecord]], list[tuple[str, str]]]:
    """Graphs that correspond: by name, then those of one kind in order; and those left over."""
    if name is not None:
        return [(graph_named(before, name), graph_named(after, name))], []
    other = {graph.name: graph for graph in after.graphs}
    pairs = [(graph, other.pop(graph.name)) for graph in before.graphs if graph.name in other]
    left = [graph for graph in before.graphs if all(graph is not old for old, _ in pairs)]
    alone: list[tuple[str, str]] = []
    for graph in left:
        match = next((new for new in other.values() if new.kind == graph.kind), None)
        if match is None:
            alone.append((before.name, graph.name))
        else:
            pairs.append((graph, other.pop(match.name)))
    return pairs, alone + [(after.name, graph) for graph in other]


def _facts(before: Run, after: Run) -> Iterator[tuple[str, tuple[str, str]]]:
    """What run.json says differently: versions, pipeline, options."""
    for key in ("pipeline", "python", "platform"):
        yield from _differing("", {key: before.info.get(key)}, {key: after.info.get(key)})
    for key in ("versions", "options", "environment"):
        old, new = before.info.get(key), after.info.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differing(f"{key}.", old, new)


def _differing(
    prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, str]]]:
    for key in dict.fromkeys([*old, *new]):
        if key.lower().removeprefix("deepcompile_") != "run_dir" and old.get(key) != new.get(key):
            texts = [visible_line(str(facts.get(key, "-"))) for facts in (old, new)]
            yield visible_line(f"{prefix}{key}"), (texts[0], texts[1])
