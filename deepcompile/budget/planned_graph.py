"""One graph under a budget that it shares: how it runs now, and how else it could."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from ..options import format_size
from .menu import Menu
from .report import BudgetReport, exceeded
from .runs import Parameters, Runs
from .shares import Share
from .ways import Member, Way

_NUMBERS = itertools.count()
Note = Callable[..., None]
"""Records an event: its name, and fields."""


@dataclass(frozen=True)
class Compiled:
    """What became of a graph with gradients under a budget.

    Attributes:
        run: the callable.
        report: of its plan.
        menu: the ways in which it could run.
        note: records an event about it.
    """

    run: Callable[..., Any]
    report: BudgetReport
    menu: Menu
    note: Note


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
        self.alternates = False
        self.runs = Runs()
        self.parameters = Parameters()
        self.compiled.report.runs = self.runs
        self._told = False
        self._again = again
        self._tracing = tracing

    def __call__(self, *args: Any) -> Any:
        """Run forward."""
        outputs = self.compiled.run(*args)
        self.runs.mark(outputs)
        return outputs

    @property
    def way(self) -> Way:
        """How it runs now."""
        return self.compiled.report.way

    @property
    def calls(self) -> int:
        """How often it runs in a step, as far as is known by now."""
        return max(self.compiled.report.calls, self.runs.waiting)

    def own(self, beside: Collection[int] = ()) -> int:
        """Bytes of parameters and of the state of their optimizer, of all that it is called with.

        Args:
            beside: ids of parameters that do not count.
        """
        pinned = self.compiled.report.pinned
        return pinned.own + pinned.copy * (self.parameters.copies(beside) - 1)

    @property
    def held(self) -> int:
        """Bytes that its forwards have saved and that are in memory now, or soon."""
        return self.way.saved * max(self.runs.waiting, int(self.fresh))

    def now(self, beside: Collection[int] = ()) -> Member:
        """As it runs now, as one of several.

        Args:
            beside: ids of parameters that do not count.
        """
        return self._member((self.way,), beside)

    def free(self, beside: Collection[int] = (), any_way: bool = False) -> Member:
        """With all ways that it could run, as one of several.

        A plan that was made for several graphs is only replaced by one that needs no more: graphs
        that run at other times beside it may count on that.

        Args:
            beside: ids of parameters that do not count.
            any_way: whether nobody counts on it.
        """
        with self._tracing():
            ways = self.compiled.menu.ways
        if self.replaced and not any_way:
            ways = tuple(way for way in ways if way.is_no_more_than(self.way))
        return self._member((self.way, *(way for way in ways if way != self.way)), beside)

    def _member(self, ways: tuple[Way, ...], beside: Collection[int]) -> Member:
        pinned = self.compiled.report.pinned
        return Member(
            pinned.own,
            pinned.gradients,
            ways,
            calls=self.calls,
            copies=self.parameters.copies(),
            further=self.own(beside) - pinned.own,
            alternates=self.alternates,
        )

    def take(self, share: Share) -> None:
        """Run as a share of the budget says, from the next call on."""
        before = self.compiled.report
        with self._tracing():
            self.compiled = self._again(replace(share, bucket=before.bucket))
        before.replaced = True
        self.replaced = True
        self._told = False
        self.compiled.report.runs = self.runs
        if share.way is not None and not self.way.is_no_more_than(share.way):
            self._tell_of_share(share, share.way)

    def _tell_of_share(self, share: Share, promised: Way) -> None:
        """A plan that was made again holds more than it was simulated to."""
        report, way = self.compiled.report, self.way
        more = max(
            way.saved - promised.saved,
            way.forward - promised.forward,
            way.backward - promised.backward,
        )
        self.compiled.note("memory-share-exceeded", more=more, peak=report.peak)
        warnings.warn(
            f"deepcompile: memory_budget = {format_size(report.budget)}: compiled once more, a "
            f"graph takes up to {more} bytes more than its share, and the step up to "
            f"{format_size(report.peak)}. Please report it.",
            stacklevel=2,
        )

    def tell(self, calls: int, peak: int) -> None:
        """Say once that the graph runs more often than was planned, and that it is too much."""
        if self._told:
            return
        self._told = True
        report = self.compiled.report
        planned = report.planned_calls
        self.compiled.note(
            "memory-repeated", calls=calls, planned=planned, peak=peak, budget=report.budget
        )
        warnings.warn(exceeded(report.budget, peak, calls, planned), stacklevel=2)

    def stays(self, share: Share) -> None:
        """Run as before, beside what the share says."""
        self.compiled.report.beside(share)
        self._told = False
