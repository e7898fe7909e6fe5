"""What a compile did after one of its recorded states, so that it can be done again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import State, is_run, read_run


@dataclass(frozen=True)
class Rest:
    """The passes that a run applied after a state.

    Attributes:
        passes: as pipeline text each, those that were skipped or failed left out.
        left_out: (pass, why) of these.
        options: of the run, as `Options.to_dict` wrote them.
        last: the newest state with a text that these passes led to; the state itself when none
            changed anything.
    """

    passes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    options: Mapping[str, Any]
    last: State


def rest_of_run(file: Path) -> Rest:
    """What came after the state in `file`, which is `RUN/graphs/GRAPH/NNN_pass.ir`.

    A compile may try a graph twice: what the second try did follows state 000 too.

    Raises:
        RunDirError: the file is no state of a run.
    """
    found = file.resolve()
    folder = found.parent.parent.parent
    if found.parent.parent.name != "graphs" or not is_run(folder):
        raise RunDirError(
            f"{file} is no state of a run (RUN/graphs/GRAPH/NNN_pass.ir); name the passes with -p"
        )
    if not found.with_suffix(".json").is_file():
        raise RunDirError(f"{file} has no description beside it (a .json file of the same name)")
    run = read_run(folder)
    for graph in run.graphs:
        for state in graph.states:
            if state.path is not None and state.path.resolve() == found:
                return _rest(state, graph.states, run.info.get("options") or {})
    raise RunDirError(f"{file} cannot be read as a state of {folder}")


def _rest(state: State, states: Sequence[State], options: Mapping[str, Any]) -> Rest:
    ordered = sorted(states, key=lambda s: (s.meta.get("time", 0.0), s.index))
    tries = list(_tries(s for s in ordered if s.index > 0))
    if state.index == 0:
        after = tries[-1] if tries else []
    else:
        own = next(one for one in tries if state in one)
        after = own[own.index(state) + 1 :]
    applied = [s for s in after if s.meta.get("status") in ("changed", "unchanged")]
    left_out = [s for s in after if s not in applied]
    return Rest(
        tuple(_pass(s) for s in applied),
        tuple((_pass(s), str(s.meta.get("reason", s.meta.get("status", "?")))) for s in left_out),
        options,
        next((s for s in reversed(after) if s.path is not None), state),
    )


def _pass(state: State) -> str:
    return str(state.meta.get("pass", state.name))


def _tries(states: Iterator[State]) -> Iterator[list[State]]:
    """States in the order of time, a new list wherever their numbers start again."""
    current: list[State] = []
    for state in states:
        if current and state.index <= current[-1].index:
            yield current
            current = []
        current.append(state)
    if current:
        yield current
