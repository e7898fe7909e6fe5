"""Splits a joint graph such that the step fits a budget, and reports what came of it.

Torch's own split is tried first: where it fits, nothing changes. Where it fits once programs take
and let go of memory as they run, only that changes. Else checkpoints are placed for the budget
(`passes.checkpoints`) by figures of a graph that is not fused yet, and what the passes and the
program made of it is simulated exactly (`codegen.timeline`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture import torch_private
from ..codegen.size_hints import size_hints
from ..codegen.steps import ProgramSpec
from ..codegen.timeline import timeline
from ..cost.rates import Rates
from ..errors import MemoryBudgetError
from ..options import format_size, parse_size
from ..passes.checkpoints.decisions import decisions
from ..passes.checkpoints.forms import Form
from ..passes.checkpoints.joint import Joint, bytes_of
from ..passes.checkpoints.scratch import scratch_of
from ..runtime.free_memory import free_memory, total_memory
from .buckets import Bucket, bucket_of
from .half import Half, calls_of, half_of
from .menu import Menu
from .plan_file import MemoryPlan, bind, fingerprint
from .planner import Halves, Planned, StepPlanner
from .report import BudgetReport
from .shares import Share
from .step import Pinned, StepTimeline, pinned_bytes
from .ways import Member, Way

MakeProgram = Callable[[GraphModule, Any, bool, Mapping[str, int]], ProgramSpec]
"""From a graph, its kind, whether memory follows lifetimes, and sizes, to its program.

The graph stays as it is.
"""


Decided = Callable[[BudgetReport, Menu], None]
"""Called with what became of a budget, before the halves are compiled."""
JointSmallest = Callable[[Member], int | None]
"""The least bytes in which a graph and those before it fit; None where none is before it."""


class BudgetedSplit:
    """Splits joint graphs so that the step fits.

    Args:
        budget: bytes, for everything that the step has in memory.
        rates: of the device.
        make_program: what passes and code generation make of a graph of a kind.
        decided: called with what became of the budget, before the halves are compiled.
        optimizer_bytes: of the optimizer's state; None: two fp32 numbers a trainable parameter.
        granule: bytes of which the device's allocator gives multiples.
        share: what other graphs of the model hold, and how this one runs if that is decided.
        joint_smallest: what graphs before this one and this one need if all are planned again.
        plans: decisions of the user's that bind, by fingerprint of the graph.
        forms: in which tensors may wait for backward.
        bit_exact: whether what another kernel may compute with other bits is not computed again.
    """

    def __init__(
        self,
        budget: int,
        rates: Rates,
        make_program: MakeProgram,
        decided: Decided,
        optimizer_bytes: int | None = None,
        granule: int = 1,
        share: Share | None = None,
        joint_smallest: JointSmallest | None = None,
        plans: Mapping[str, MemoryPlan] | None = None,
        forms: Sequence[Form] = (),
        bit_exact: bool = False,
    ) -> None:
        self.budget = budget
        self.rates = rates
        self.make_program = make_program
        self.decided = decided
        self.optimizer_bytes = optimizer_bytes
        self.granule = granule
        self.share = share or Share()
        self.joint_smallest = joint_smallest
        self.plans = plans or {}
        self.forms = forms
        self.bit_exact = bit_exact

    def __call__(
        self,
        joint: GraphModule,
        joint_inputs: Sequence[Any],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Halves:
        """As functorch's partitioners.

        Raises:
            MemoryBudgetError: when no plan fits; it names the smallest budget that does.
        """
        static = tuple(static_lifetime_input_indices or ())
        halves = torch_private.split_joint_graph(
            joint,
            joint_inputs,
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_indices=list(static),
            **kwargs,
        )
        before = set(joint.graph.nodes)
        for bucket in self._buckets(joint.graph):
            facts = Joint(
                joint.graph,
                num_fwd_outputs,
                self.rates,
                bit_exact=self.bit_exact,
                sizes=bucket.sizes,
            )
            try:
                return self._split(joint, facts, halves, static, bucket)
            except MemoryBudgetError as error:
                refused = error
                _erase_new(joint.graph, before)
        raise refused

    def _buckets(self, graph: Graph) -> list[Bucket]:
        """Sizes to plan for: all up to a power of two, or those that were seen where it must be."""
        if self.share.bucket is not None:
            return [self.share.bucket]
        found = bucket_of(graph)
        return [found] if found.is_exact else [found, found.exact()]

    def _split(
        self,
        joint: GraphModule,
        facts: Joint,
        halves: Halves,
        static: Sequence[int],
        bucket: Bucket,
    ) -> Halves:
        share = self.share
        pinned = pinned_bytes(facts, static, self.optimizer_bytes, share.others, share.first)
        report = BudgetReport(self.budget, pinned, self.rates, bucket=bucket)
        report.assumed_optimizer = self.optimizer_bytes is None
        report.replanned = share.way is not None
        report.planned_calls, report.further = share.calls, share.further
        report.graph = fingerprint(facts)
        bound = self.plans.get(report.graph)
        report.plan_unused = bool(self.plans) and bound is None
        if bound is not None:
            bind(facts, bound)
        binds = bound is not None and bool(bound.pinned)
        planner = StepPlanner(joint, facts, self.simulate, static, self.forms)
        known: list[Way] = []
        for follow_lifetimes in (False, True):
            self._take_torchs(halves, facts, follow_lifetimes, report)
            if not binds:
                known.append(report.way)
            settled = self._settles(report, binds)
            if settled:
                break
        menu = Menu(known, planner)
        if not settled:
            halves = self._plan(planner, menu, report)
        planner.forget()
        bucket.guard(from_below=report.planned is not None)
        self.decided(report, menu)
        return halves

    def _take_torchs(
        self, halves: Halves, facts: Joint, follow_lifetimes: bool, report: BudgetReport
    ) -> None:
        report.follow_lifetimes = follow_lifetimes
        started = time.perf_counter()
        self._take_step(self.simulate(halves, facts, follow_lifetimes), report)
        report.trial_seconds += time.perf_counter() - started
        report.trials += 1
        report.unplanned = report.unplanned or report.peak

    def _take_step(self, step: StepTimeline, report: BudgetReport) -> None:
        report.step = step
        report.set_peak(self.share.later)

    def _settles(self, report: BudgetReport, binds: bool) -> bool:
        """Whether torch's split, tried as it is in the report, is what runs."""
        way = self.share.way
        if way is not None:
            return way.rung is None and way.follow_lifetimes == report.follow_lifetimes
        return report.peak <= self.budget and not binds

    def _plan(self, planner: StepPlanner, menu: Menu, report: BudgetReport) -> Halves:
        """Take a plan of the planner's.

        Raises:
            MemoryBudgetError: when none fits.
        """
        torchs = report.step
        assert torchs is not None
        if self.share.way is not None:
            assert self.share.way.rung is not None
            report.planned = planner.planned(self.share.way.rung)
        else:
            report.planned = planner.within(self.budget - report.pinned.total)
        if report.planned is None:
            report.planned = self._leanest_of_several(planner, menu, torchs, report)
        report.plan_seconds = planner.plan_seconds
        report.trial_seconds += planner.trial_seconds
        report.trials += planner.trials
        report.rung = report.planned.number
        self._take_step(report.planned.step, report)
        report.decisions = decisions(
            report.planned.options,
            report.planned.saved,
            report.planned.recomputed,
            report.planned.parts,
            report.planned.transfers,
        )
        return report.planned.halves

    def _leanest_of_several(
        self, planner: StepPlanner, menu: Menu, torchs: StepTimeline, report: BudgetReport
    ) -> Planned:
        """For the first step: graphs before this one took room that they will leave it later.

        Raises:
            MemoryBudgetError: when they cannot.
        """
        leanest = min(torchs, planner.lowest_plans[0].step, key=lambda step: step.peak)
        pinned = report.pinned
        least = None
        if self.joint_smallest is not None:
            least = self.joint_smallest(Member(pinned.own, pinned.gradients, menu.ways))
        if least is None or least > self.budget:
            raise self._refusal(leanest, pinned, least)
        report.exceeds = True
        return planner.lowest_plans[0]

    def _refusal(
        self, leanest: StepTimeline, pinned: Pinned, joint_least: int | None
    ) -> MemoryBudgetError:
        smallest = leanest.peak + pinned.total if joint_least is None else joint_least
        where, program = leanest.highest
        held = ", ".join(
            f"{_ROLES[span.role]} of {format_size(span.nbytes)}"
            for span in program.owners(program.peak_step)[:3]
        )
        others = (
            f"graphs before it hold {format_size(pinned.others)} as they are planned now; "
            if pinned.others
            else ""
        )
        what = "this training step" if joint_least is None else "a training step of all graphs"
        return MemoryBudgetError(
            f"memory_budget = {format_size(self.budget)}: {what} needs at least "
            f"{smallest} bytes ({format_size(smallest)}). In this graph "
            f"{format_size(pinned.parameters)} are parameters and inputs, "
            f"{format_size(pinned.optimizer)} state of the optimizer; "
            f"{others}at its highest moment {where} also holds {held}. "
            "Give at least that much, or a smaller batch.",
            self.budget,
            smallest,
        )

    def simulate(self, halves: Halves, facts: Joint, follow_lifetimes: bool = True) -> StepTimeline:
        """What the programs of the two halves hold."""
        forward, backward = halves
        returned = {
            facts.base(node).name: facts.nbytes(node)
            for node in facts.outputs[: facts.forward_outputs]
            if isinstance(node, Node) and facts.base(node).op != "placeholder"
        }
        storages = {
            node.name: (facts.base(node).name, facts.nbytes(node)) for node in facts.forward
        }
        sizes = facts.sizes
        first = self._half(forward, "forward", (), follow_lifetimes, storages, sizes)
        second = self._half(
            backward, "backward", tuple(returned), follow_lifetimes, storages, sizes
        )
        found = StepTimeline(
            first.timeline, second.timeline, sum(returned.values()),
            first.labels, second.labels, first.calls, second.calls,
        )  # fmt: skip
        if first.undelayed == first.timeline and second.undelayed == second.timeline:
            return found
        undelayed = replace(found, forward=first.undelayed, backward=second.undelayed)
        return replace(found, undelayed=undelayed)

    def _half(
        self,
        graph: GraphModule,
        kind: str,
        held: Sequence[str],
        follow_lifetimes: bool,
        storages: Mapping[str, tuple[str, int]],
        sizes: Mapping[str, int],
    ) -> Half:
        with torch_private.uncalled_graph_modules():
            spec = self.make_program(graph, kind, follow_lifetimes, sizes)
        names = [str(node.target) for node in graph.graph.find_nodes(op="placeholder")]
        pinned = {
            number
            for number, name in enumerate(names)
            if name.startswith("primals") or storages.get(name, (name, 0))[0] in held
        }
        sizes = size_hints(graph) | dict(sizes)
        calls = calls_of(spec)
        nodes = {node.name: node for node in graph.graph.nodes}
        scratch = {
            number: scratch_of(nodes[name], lambda node: bytes_of(node, sizes))
            for number, name in calls.items()
            if name in nodes
        }
        found = timeline(spec, sizes, pinned_inputs=pinned, granule=self.granule, scratch=scratch)
        return half_of(spec, names, found, storages)


_ROLES = {
    "input": "a tensor saved by forward",
    "output": "a gradient or output",
    "transient": "an intermediate",
    "extern": "a result of an operator",
    "constant": "a constant",
    "arena": "a block of small intermediates",
    "scratch": "memory inside of a call",
}


def budget_bytes(budget: str | int, device: torch.device) -> int:
    """Bytes of an option: a size as it is, a share of the device's memory, or what is free."""
    if isinstance(budget, int):
        return budget
    if budget == "auto":
        return int(free_memory(device) * (1 - MARGIN))
    return parse_size(budget, total_memory(device))


MARGIN = 0.1
"""The part of the free memory that `memory_budget="auto"` leaves alone."""


def _erase_new(graph: Graph, before: Collection[Node]) -> None:
    """Take out what planning has written into a graph."""
    for node in reversed(graph.nodes):
        if node not in before:
            graph.erase_node(node)


def copied(graph: GraphModule) -> GraphModule:
    """The graph with nodes of its own, for passes to change."""
    new = Graph()
    env: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        env[node] = new.node_copy(node, env.__getitem__)
        env[node].meta = dict(node.meta)
    result = torch_private.graph_module(graph, new, "GraphModule")
    result.meta.update(graph.meta)
    return result
