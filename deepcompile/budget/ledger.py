"""What the graphs of one model hold: with a graph break there are several, and one budget.

A graph is met when forward gets to it, while those before it have saved their tensors already. So
it is planned for what they leave. Where it does not fit there, or where one of them has to compute
something again, all are planned once more as soon as the first of them is called again, and those
whose plan changes are compiled once more. A graph that needs room which earlier graphs have taken
is planned as lean as can be for that first step, which may exceed the budget; it says so.

One graph may run several times before its backward: equal layers that are compiled one by one, or
one that runs in a loop. A step has shown how often when it ends, that is when a graph is called and
no forward waits for its backward any more; then graphs are planned for that, too.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..capture.torch_private import current_frame, hidden_from_dynamo, tracing_once_more
from ..errors import MemoryBudgetError
from ..options import format_size
from .planned_graph import Compiled, PlannedGraph
from .shares import Share, choose, smallest
from .ways import Member

_MOST = 64


@dataclass
class _Called:
    """A graph that ran in this step.

    Attributes:
        graph: alive or not.
        last: the number of its last call.
    """

    graph: weakref.ref[PlannedGraph]
    last: int


class Ledger:
    """The graphs of one call of `torch.compile`, and which of them ran in the step so far."""

    def __init__(self) -> None:
        self._graphs: list[weakref.ref[PlannedGraph]] = []
        self._step: OrderedDict[int, _Called] = OrderedDict()
        self._calls = 0
        self._planned: dict[tuple[int, ...], set[Hashable]] = {}
        self._version: Hashable = None
        self._entered = 0
        self._lock = threading.RLock()

    def frame(self) -> Hashable:
        """What Dynamo compiles now: versions of one piece of code have the same.

        A wrapper for data parallel training cuts one graph of Dynamo's into several.
        """
        number, version = current_frame()
        with self._lock:
            if version != self._version:
                self._version, self._entered = version, 0
            return number, self._entered

    def before(self) -> list[PlannedGraph]:
        """Graphs that run before one that is met now in a step, in order."""
        with self._lock:
            return [] if self._is_over(None) else self._in_step()

    def elsewhere(self, frames: Sequence[Hashable]) -> int:
        """Bytes of parameters, and of their optimizers, of graphs of no such frame."""
        with self._lock:
            found: dict[Hashable, int] = {}
            for graph in self._alive():
                if graph.frame not in frames:
                    found[graph.frame] = max(found.get(graph.frame, 0), graph.own())
            return sum(found.values())

    def share(self, frame: Hashable) -> Share:
        """What there is beside a graph that is met for the first time."""
        earlier = self.before()
        own = members_of(earlier, PlannedGraph.now)
        held = sum(member.pinned + member.further for member in own)
        held += sum(graph.held for graph in earlier)
        others = held + self.elsewhere([frame, *(graph.frame for graph in earlier)])
        return Share(others, first=not earlier)

    def entered(
        self,
        compiled: Compiled,
        again: Callable[[Share], Compiled],
        example_inputs: Sequence[Any],
    ) -> Callable[..., Any]:
        """What Dynamo is to call in place of a graph that it compiles now, and calls next.

        Args:
            compiled: what became of the graph.
            again: compiles it for another share.
            example_inputs: of the graph.
        """
        tracing = tracing_once_more(example_inputs)
        if tracing is None:
            return compiled.run
        graph = PlannedGraph(self.frame(), compiled, again, tracing)
        self.enter(graph)

        def run(*args: Any) -> Any:
            self.called(graph, args)
            return graph(*args)

        return hidden_from_dynamo(run, "a compiled graph is not user code")

    def enter(self, graph: PlannedGraph) -> None:
        """A graph runs next for the first time."""
        with self._lock:
            self._entered += 1
            if self._is_over(None):
                self._begin_step()
            self._note_call(graph)
            self._graphs = [weakref.ref(known) for known in [*self._alive(), graph]]

    def called(self, graph: PlannedGraph, args: Sequence[Any] = ()) -> None:
        """A graph is about to run with these inputs. If no forward waits, a new step begins.

        Raises:
            MemoryBudgetError: when the graphs of the last step fit in no plan.
        """
        with self._lock:
            fresh, graph.fresh = graph.fresh, False
            if not fresh and self._is_over(graph):
                self._begin_step()
            graph.parameters.see(args)
            self._note_call(graph)
            self._tell_if_too_often(graph)

    def _note_call(self, graph: PlannedGraph) -> None:
        """If others ran since its last call in this step, they alternate."""
        self._calls += 1
        known = self._step.setdefault(graph.number, _Called(weakref.ref(graph), self._calls))
        since = [other.graph() for other in self._step.values() if other.last > known.last]
        for other in (graph, *since) if since else ():
            if other is not None:
                other.alternates = True
        known.last = self._calls

    def _is_over(self, graph: PlannedGraph | None) -> bool:
        """Whether the step is over when this graph is called, or one that is compiled now.

        So it is when no forward waits for its backward. Where a next one runs before the last
        backward, always, steps begin with the first graph.
        """
        ran = self._in_step()
        if graph is None and any(known.fresh for known in ran):
            return False
        if not any(known.runs.waiting for known in ran):
            return True
        return graph is ran[0] and any(known.runs.backward for known in ran)

    def _begin_step(self) -> None:
        """The graphs that ran made a step, and are planned as one."""
        finished = self._in_step()
        waiting = [graph for graph in finished if graph.runs.waiting]
        for graph in waiting if len(finished) > 1 else ():
            graph.alternates = True
        if finished:
            self._plan(finished)
        for graph in finished:
            graph.runs.backward = False
        self._step.clear()

    def _in_step(self) -> list[PlannedGraph]:
        found = [known.graph() for known in self._step.values()]
        return [graph for graph in found if graph is not None]

    def _alive(self) -> list[PlannedGraph]:
        return [graph for ref in self._graphs if (graph := ref()) is not None]

    def _tell_if_too_often(self, graph: PlannedGraph) -> None:
        """If a graph runs once more than was planned, and there is no room for that."""
        calls = graph.runs.waiting + 1
        if calls <= graph.calls:
            return
        ran = self._in_step()
        members = members_of(ran, PlannedGraph.now)
        members[ran.index(graph)] = replace(members[ran.index(graph)], calls=calls)
        peak = smallest(members) + self.elsewhere([known.frame for known in ran])
        if peak > graph.compiled.report.budget:
            graph.tell(calls, peak)

    def _plan(self, graphs: Sequence[PlannedGraph]) -> None:
        """Give graphs that run in one step their shares, if they do not have them yet."""
        group = tuple(graph.number for graph in graphs)
        often = tuple((g.calls, g.parameters.copies(), g.alternates) for g in graphs)
        planned = self._planned.setdefault(group, set())
        if often in planned:
            return
        elsewhere = self.elsewhere([graph.frame for graph in graphs])
        budget = graphs[0].compiled.report.budget - elsewhere
        members = members_of(graphs, PlannedGraph.now)
        if smallest(members) > budget or (len(graphs) > 1 and any(g.way.seconds for g in graphs)):
            members = members_of(graphs, PlannedGraph.free)
        shares = choose(members, budget)
        if shares is None and planned:
            # They run more often than before, or with more parameters: others may count on plans
            # of theirs, and are to be planned again, too.
            members = members_of(graphs, partial(PlannedGraph.free, any_way=True))
            shares = choose(members, budget)
            self._planned = {group: planned}
        if shares is None:
            raise refusal(budget + elsewhere, smallest(members) + elsewhere, members)
        repeated = any(member.calls > 1 for member in members)
        for graph, share in zip(graphs, shares, strict=True):
            share = replace(share, others=share.others + elsewhere)
            if share.way != graph.way:
                graph.take(share)
            elif repeated:
                graph.stays(share)
        planned.add(often)


def joint_smallest(ledger: Ledger, frame: Hashable, member: Member) -> int | None:
    """What a graph that is being compiled needs with those before it, if all are planned again."""
    earlier = ledger.before()
    if not earlier:
        return None
    frames = [frame, *(graph.frame for graph in earlier)]
    return smallest([*members_of(earlier, PlannedGraph.free), member]) + ledger.elsewhere(frames)


def members_of(
    graphs: Sequence[PlannedGraph], member: Callable[[PlannedGraph, Collection[int]], Member]
) -> list[Member]:
    """Graphs that run in one step as those: parameters of several of them count once."""
    found = []
    counted: set[int] = set()
    for graph in graphs:
        found.append(member(graph, counted))
        counted |= graph.parameters.ids
    return found


def refusal(budget: int, least: int, members: Sequence[Member]) -> MemoryBudgetError:
    """The error for graphs that fit in no plan together."""
    graphs = "1 graph" if len(members) == 1 else f"{len(members)} graphs"
    calls = sum(member.calls for member in members)
    often = f" called {calls} times" if calls > len(members) else ""
    return MemoryBudgetError(
        f"memory_budget = {format_size(budget)}: a training step of this model, of {graphs}{often} "
        f"so far, needs at least {least} bytes ({format_size(least)}). "
        "Give at least that much, or a smaller batch; fewer graph breaks may help.",
        budget,
        least,
    )


_LEDGERS: OrderedDict[int, tuple[Any, Ledger]] = OrderedDict()


def ledger_of(options: Any) -> Ledger:
    """The ledger of all graphs of one call of `torch.compile`: they get the same options object."""
    if options is None:
        return Ledger()
    known = _LEDGERS.get(id(options))
    if known is None:
        # The object is kept, so that its number stays its own.
        known = _LEDGERS[id(options)] = options, Ledger()
        if len(_LEDGERS) > _MOST:
            _LEDGERS.popitem(last=False)
    return known[1]
