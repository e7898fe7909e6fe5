"""What the graphs of one model hold: with a graph break there are several, and one budget.

A graph is met when forward gets to it, while those before it have saved their tensors already. So
it is planned for what they leave. Where it does not fit there, or where one of them has to compute
something again, all are planned once more as soon as the first of them is called again, and those
whose plan changes are compiled once more. A graph that needs room which earlier graphs have taken
is planned as lean as can be for that first step, which may exceed the budget; it says so.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from ..capture.torch_private import current_frame, hidden_from_dynamo, tracing_once_more
from ..errors import MemoryBudgetError
from ..options import format_size
from .menu import Menu
from .report import BudgetReport
from .shares import Member, Share, Way, choose, smallest

_MOST = 64
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Compiled:
    """What became of a graph with gradients under a budget.

    Attributes:
        run: the callable.
        report: of its plan.
        menu: the ways in which it could run.
    """

    run: Callable[..., Any]
    report: BudgetReport
    menu: Menu


class PlannedGraph:
    """A graph that Dynamo calls; what it runs may be replaced between two calls.

    A forward that has run keeps its own backward: the callable of AOTAutograd holds both.

    Args:
        frame: of Dynamo's; versions of one function have the same.
        compiled: what runs at first.
        again: compiles the graph for another share.
        tracing: where its operators can be traced once more.
    """

    def __init__(
        self,
        frame: Hashable,
        compiled: Compiled,
        again: Callable[[Share], Compiled],
        tracing: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.number = next(_NUMBERS)
        self.frame = frame
        self.compiled = compiled
        self.fresh = True
        self.replaced = False
        self._again = again
        self._tracing = tracing

    @property
    def way(self) -> Way:
        """How it runs now."""
        return self.compiled.report.way

    @property
    def own(self) -> int:
        """Bytes of parameters and of the state of their optimizer."""
        return self.compiled.report.pinned.own

    def now(self) -> Member:
        """As it runs now, as one of several."""
        return self._member((self.way,))

    def free(self) -> Member:
        """With all ways that it could run, as one of several.

        A plan that was made for several graphs is only replaced by one that needs no more: graphs
        that run at other times beside it may count on that.
        """
        with self._tracing():
            ways = self.compiled.menu.ways
        if self.replaced:
            ways = tuple(way for way in ways if way.is_no_more_than(self.way))
        return self._member((self.way, *(way for way in ways if way != self.way)))

    def _member(self, ways: tuple[Way, ...]) -> Member:
        return Member(self.own, self.compiled.report.pinned.gradients, ways)

    def take(self, share: Share) -> None:
        """Run as a share of the budget says, from the next call on."""
        before = self.compiled.report
        with self._tracing():
            self.compiled = self._again(replace(share, bucket=before.bucket))
        before.replaced = True
        self.replaced = True


class Ledger:
    """The graphs of one call of `torch.compile`, and which of them ran in the step so far."""

    def __init__(self) -> None:
        self._graphs: list[weakref.ref[PlannedGraph]] = []
        self._step: OrderedDict[Hashable, weakref.ref[PlannedGraph]] = OrderedDict()
        self._planned: set[tuple[int, ...]] = set()
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

    def before(self, frame: Hashable) -> list[PlannedGraph]:
        """Graphs that run before this one in a step, in order."""
        with self._lock:
            frames = list(self._step)
            known = frames.index(frame) if frame in self._step else len(frames)
            found = [self._step[other]() for other in frames[:known]]
            return [graph for graph in found if graph is not None]

    def elsewhere(self, frames: Sequence[Hashable]) -> int:
        """Bytes of parameters, and of their optimizers, of graphs of no such frame."""
        with self._lock:
            found: dict[Hashable, int] = {}
            for graph in self._alive():
                if graph.frame not in frames:
                    found[graph.frame] = max(found.get(graph.frame, 0), graph.own)
            return sum(found.values())

    def share(self, frame: Hashable) -> Share:
        """What there is beside a graph that is met for the first time."""
        earlier = self.before(frame)
        held = sum(graph.own + graph.way.saved for graph in earlier)
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
            self.called(graph)
            return graph.compiled.run(*args)

        return hidden_from_dynamo(run, "a compiled graph is not user code")

    def enter(self, graph: PlannedGraph) -> None:
        """A graph runs next for the first time."""
        with self._lock:
            self._entered += 1
            self._begin_step(graph)
            self._step[graph.frame] = weakref.ref(graph)
            self._graphs = [weakref.ref(known) for known in [*self._alive(), graph]]

    def called(self, graph: PlannedGraph) -> None:
        """A graph is about to run. If it ran in this step already, a new one begins.

        Raises:
            MemoryBudgetError: when the graphs of the last step fit in no plan.
        """
        with self._lock:
            if graph.fresh:
                graph.fresh = False
                return
            self._begin_step(graph)
            self._step[graph.frame] = weakref.ref(graph)

    def _begin_step(self, graph: PlannedGraph) -> None:
        """If this graph ran already, those that ran made a step, and are planned as one."""
        if graph.frame not in self._step:
            return
        finished = [known for ref in self._step.values() if (known := ref()) is not None]
        if finished:
            self._plan(finished)
        self._step.clear()

    def _alive(self) -> list[PlannedGraph]:
        return [graph for ref in self._graphs if (graph := ref()) is not None]

    def _plan(self, graphs: Sequence[PlannedGraph]) -> None:
        """Give graphs that run in one step their shares, if they do not have them yet."""
        group = tuple(graph.number for graph in graphs)
        if group in self._planned:
            return
        elsewhere = self.elsewhere([graph.frame for graph in graphs])
        budget = graphs[0].compiled.report.budget - elsewhere
        fits = smallest([graph.now() for graph in graphs]) <= budget
        if not fits or (len(graphs) > 1 and any(graph.way.seconds for graph in graphs)):
            members = [graph.free() for graph in graphs]
            shares = choose(members, budget)
            if shares is None:
                raise refusal(budget + elsewhere, smallest(members) + elsewhere, len(graphs))
            for graph, share in zip(graphs, shares, strict=True):
                if share.way != graph.way:
                    graph.take(replace(share, others=share.others + elsewhere))
        self._planned.add(group)


def joint_smallest(ledger: Ledger, frame: Hashable, member: Member) -> int | None:
    """What a graph that is being compiled needs with those before it, if all are planned again."""
    earlier = ledger.before(frame)
    if not earlier:
        return None
    frames = [frame, *(graph.frame for graph in earlier)]
    return smallest([*(graph.free() for graph in earlier), member]) + ledger.elsewhere(frames)


def refusal(budget: int, least: int, graphs: int) -> MemoryBudgetError:
    """The error for graphs that fit in no plan together."""
    return MemoryBudgetError(
        f"memory_budget = {format_size(budget)}: a training step of this model, of {graphs} graphs "
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
