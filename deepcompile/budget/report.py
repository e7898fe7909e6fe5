"""What became of a budget: for events, `explain` and the run directory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from ..codegen.timeline import Timeline
from ..cost.rates import Rates
from ..options import format_size
from ..passes.checkpoints.decisions import Decision
from .buckets import Bucket
from .plan_file import MemoryPlan
from .planner import Planned
from .runs import Runs
from .shares import Share
from .step import Pinned, StepTimeline
from .ways import Way, way_of


@dataclass
class BudgetReport:
    """What became of a budget.

    Attributes:
        budget: bytes that were given.
        pinned: what is there through the whole step.
        rates: of the device, by which the plan was made.
        step: the simulation of the programs that will run.
        unplanned: the peak without a budget.
        peak: the peak that is predicted now.
        follow_lifetimes: whether programs take and let go of memory as they run.
        planned: the plan; None where the budget needs none.
        assumed_optimizer: whether the bytes of the optimizer's state are a guess.
        graph: fingerprint of the joint graph.
        plan_unused: whether a plan file was given that has nothing for this graph.
        bucket: the largest sizes that it is for.
        rung: of the plan among those of the planner.
        replanned: whether it is the graph's share in a plan for all graphs of the model.
        replaced: whether the graph has been planned once more since.
        planned_calls: how often it runs in the steps that it is planned for.
        runs: of the graph.
        further: bytes of more sets of parameters that it is called with; among `pinned.others`.
        exceeds: whether the first step exceeds the budget; all graphs are planned again for others.
        decisions: one row a tensor; empty where the budget needs no plan.
    """

    budget: int
    pinned: Pinned
    rates: Rates
    step: StepTimeline | None = None
    unplanned: int = 0
    peak: int = 0
    follow_lifetimes: bool = False
    planned: Planned | None = None
    plan_seconds: float = 0.0
    trial_seconds: float = 0.0
    trials: int = 0
    assumed_optimizer: bool = True
    graph: str = ""
    decisions: list[Decision] = field(default_factory=list)
    plan_unused: bool = False
    bucket: Bucket = field(default_factory=Bucket)
    rung: int | None = None
    replanned: bool = False
    replaced: bool = False
    exceeds: bool = False
    planned_calls: int = 1
    runs: Runs | None = None
    further: int = 0

    @property
    def calls(self) -> int:
        """How often the graph runs in a step, as far as steps have shown."""
        return max(self.planned_calls, self.runs.most if self.runs else 1)

    def set_peak(self, later: int) -> None:
        """Predict the peak, beside so many bytes of gradients of other graphs in backward."""
        assert self.step is not None
        self.peak = self.step.peak_beside(later) + self.pinned.total

    def beside(self, share: Share) -> None:
        """It stays as it runs, and this is what others hold."""
        self.pinned = replace(self.pinned, others=share.others)
        self.planned_calls, self.further = share.calls, share.further
        self.set_peak(share.later)

    @property
    def way(self) -> Way:
        """How the graph will run, as one of several that share the budget."""
        assert self.step is not None
        seconds = self.planned.combination.seconds if self.planned else 0.0
        return way_of(self.step, self.rung, self.follow_lifetimes, seconds)

    @property
    def unsolved(self) -> list[str]:
        """Why choices may not be the quickest, or why there is no bound: each reason once."""
        if self.planned is None:
            return []
        missing = self.planned.combination.no_bound
        return list(
            dict.fromkeys([*self.planned.options.unsolved, *([missing] if missing else [])])
        )

    def facts(self) -> dict[str, Any]:
        """As fields of an event."""
        combination = self.planned.combination if self.planned else None
        return {
            "budget": self.budget,
            "peak": self.peak,
            "unplanned_peak": self.unplanned,
            "parameters": self.pinned.parameters,
            "optimizer": self.pinned.optimizer,
            "optimizer_assumed": self.assumed_optimizer,
            "plan_unused": self.plan_unused,
            "other_graphs": self.pinned.others,
            "calls": self.calls,
            "replanned": self.replanned,
            "exceeds": self.exceeds,
            "sizes": dict(self.bucket.sizes),
            "rates": self.rates.source,
            "rates_hash": self.rates.fingerprint,
            "recompute_seconds": combination.seconds if combination else 0.0,
            "exposed_seconds": sum(row.exposed for row in self.decisions),
            "bound_seconds": combination.bound if combination else 0.0,
            "unsolved": self.unsolved,
            "trials": self.trials,
            "plan_seconds": round(self.plan_seconds, 4),
            "trial_seconds": round(self.trial_seconds, 4),
        }

    @property
    def plan(self) -> MemoryPlan:
        """As a file keeps it."""
        return MemoryPlan(self.graph, self.facts(), tuple(self.decisions))

    def to_dict(self) -> dict[str, Any]:
        """The plan, and bytes over both programs with what is there at the highest moment."""
        found = self.plan.to_dict()
        if self.step is not None:
            halves = {"forward": self.step.forward, "backward": self.step.backward}
            labels = {
                "forward": self.step.forward_labels,
                "backward": self.step.backward_labels,
            }
            found["timeline"] = {
                name: _timeline(half, labels[name]) for name, half in halves.items()
            }
        return found


def warn_of_first_step(report: BudgetReport) -> None:
    """Say that one step takes more than the budget, before all are planned again."""
    warnings.warn(
        f"deepcompile: memory_budget = {format_size(report.budget)}: the first step takes up to "
        f"{format_size(report.peak)}. A graph of this model came up when earlier ones had taken "
        "the room that it needs; from the second step on they leave it.",
        stacklevel=2,
    )


def exceeded(budget: int, peak: int, calls: int, planned: int) -> str:
    """Say that a graph runs more often in a step than was planned, and that it is too much."""
    return (
        f"deepcompile: memory_budget = {format_size(budget)}: this step takes up to {peak} bytes "
        f"({format_size(peak)}), {format_size(peak - budget)} more. A graph has run {calls} times "
        f"before its backward, and was planned to run {_times(planned)} in a step. It is planned "
        "again when the next step begins."
    )


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _timeline(program: Timeline, labels: dict[int, str]) -> dict[str, Any]:
    return {
        "live": [program.live(step) for step in range(-1, program.steps + 1)],
        "peak_step": program.peak_step,
        "owners": [
            {
                "tensor": labels.get(span.slot, ""),
                "role": span.role,
                "nbytes": span.nbytes,
                "first": span.first,
                "last": span.last,
            }
            for span in program.owners(program.peak_step)
        ],
    }
