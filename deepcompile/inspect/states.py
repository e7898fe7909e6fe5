"""Names on the command line for what a run holds: graphs, states of graphs, kernels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from deepcompile.errors import RunDirError, unknown_name
from deepcompile.inspect.ir_text import IRGraph, parse_ir
from deepcompile.inspect.reader import GraphRecord, KernelRecord, Run, State

NEAREST_OF = 5_000
"""Names among which the nearest one is looked for."""


def graph_named(run: Run, name: str) -> GraphRecord:
    """The graph of that name; `RunDirError` with the nearest name where there is none."""
    for graph in run.graphs:
        if graph.name == name:
            return graph
    raise RunDirError(f"{unknown_name('graph', name, names_of(run.graphs))} in {run.name}")


def kernel_named(run: Run, name: str) -> KernelRecord:
    """The kernel of that name, or the only one whose name ends so (`k3` for `g0_forward.k3`).

    Raises:
        RunDirError: there is none, or several end so.
    """
    ending = [kernel for kernel in run.kernels if kernel.name.endswith(f".{name}")]
    found = [kernel for kernel in run.kernels if kernel.name == name] or ending
    if len(found) == 1:
        return found[0]
    if found:
        raise RunDirError(f"{name!r} is {len(found)} kernels: {', '.join(names_of(found))}")
    raise RunDirError(f"{unknown_name('kernel', name, names_of(run.kernels))} in {run.name}")


def names_of(records: Iterable[GraphRecord | KernelRecord]) -> list[str]:
    """Their names, in order."""
    return [record.name for record in records]


def state_named(graph: GraphRecord, text: str) -> State:
    """The state that `text` means: a number, `first`, `last`, PASS or PASS#k (its k-th time).

    PASS alone is the last time that the pass ran.

    Raises:
        RunDirError: there is none; the text has the nearest name.
    """
    if not graph.states:
        raise RunDirError(f"graph {graph.name} has no states")
    if text in ("first", "last"):
        return graph.states[0 if text == "first" else -1]
    if text.isdecimal():
        for state in graph.states:
            if state.index == int(text):
                return state
        numbers = f"{graph.states[0].index} to {graph.states[-1].index}"
        raise RunDirError(f"graph {graph.name} has no state {text}; there are {numbers}")
    name, hash_, number = text.rpartition("#") if "#" in text else (text, "", "")
    found = [state for state in graph.states if state.name == name]
    if not found:
        known = {state.name for state in graph.states}
        raise RunDirError(f"{unknown_name('pass', name, known)} in graph {graph.name}")
    if not hash_:
        return found[-1]
    if not number.isdecimal() or not 0 < int(number) <= len(found):
        raise RunDirError(f"{name} ran {len(found)} times on graph {graph.name}, not {number!r}")
    return found[int(number) - 1]


def kept_state(graph: GraphRecord, state: State) -> State:
    """`state` itself, or the newest before it that has a text: passes without change keep none.

    Raises:
        RunDirError: none has.
    """
    for earlier in reversed(graph.states[: graph.states.index(state) + 1]):
        if earlier.path is not None:
            return earlier
    raise RunDirError(f"no text of graph {graph.name} was kept up to {state_title(state)}")


def state_before(graph: GraphRecord, state: State) -> State | None:
    """The newest state with a text before `state`; None where there is none."""
    for earlier in reversed(graph.states[: graph.states.index(state)]):
        if earlier.path is not None:
            return earlier
    return None


def state_title(state: State) -> str:
    """`002 fuse-rows`."""
    return f"{state.index:03d} {state.name}"


def graph_at(state: State) -> IRGraph:
    """The lines of a state that has a text; `RunDirError` when it cannot be read."""
    return parse_ir(state.text or "")


def recorded_modules(graph: GraphRecord) -> Mapping[str, object]:
    """Names of nodes by the module that made them, as the first state says; else nothing."""
    modules = graph.states[0].meta.get("modules") if graph.states else None
    return modules if isinstance(modules, Mapping) else {}


def unknown_node(graph: IRGraph, name: str) -> str:
    """The message for a node that is not there, with the nearest name."""
    names = list(graph.by_name)
    close = _close(name, names)
    return f"no node {name!r} in the graph" + (f"; did you mean {close!r}?" if close else "")


def _close(name: str, names: Sequence[str]) -> str | None:
    """The nearest of many names; those that begin alike come first."""
    alike = [known for known in names if known.startswith(name[:2])] or list(names)
    found = difflib.get_close_matches(name, alike[:NEAREST_OF], n=1, cutoff=0.5)
    return found[0] if found else None
