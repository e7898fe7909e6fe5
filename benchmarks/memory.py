"""Plans of activation checkpoints for a budget of bytes: their peaks, seconds, and what they cost.

Budgets: for each model twenty budgets from the smallest that a plan fits to the peak of torch's
default split, all beside what is pinned (parameters, optimizer). Peaks are of the programs that our
passes make; seconds are those of the cost model, against the bound of a linear program.

Frontier: torch's own `activation_memory_budget` at twenty fractions, in the same simulator; for
each point our leanest plan that spends no more FLOPs on matrix products in backward. Torch's
knapsack counts FLOPs alone, so here our planner does, too.

Plan time: seconds of planning a stack of equal layers; capture and trials (our passes and program
making, once for each plan that is tried) are apart.

Steps: medians of rounds taken in turn, of a step within a budget and without one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks._measure import Check, Measurement, Plan, SuiteResult, alternate, paired_ratio
from benchmarks.memory_models import NAMES, Batch, Size, build, token_loss
from benchmarks.memory_modules import GPT, TextSizes
from benchmarks.memory_steps import TrainingStep, training_step
from benchmarks.torch_budget import matmul_flops, redrawn, split_with_budget
from deepcompile.backend import recording
from deepcompile.budget.planner import Planned

BUDGETS = 20
TIME_LIMIT = 1.05
FLOOR_LIMIT = 1.10
LOWEST_LIMIT = 0.92
TIGHT_LIMIT = 0.55
TIGHT_HALF = 0.5
PLAN_LIMITS = {10_000: 5.0, 50_000: 30.0}
SHARES = (1.0, 0.6, 0.4)
NODES_PER_LAYER = 140
_NOTHING = 1e-3  # of a step: a bound below it says nothing about a ratio


@dataclass
class Found:
    """What a part of the suite hands on."""

    measurements: list[Measurement] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)

    def measure(self, name: str, value: float, unit: str) -> None:
        """Add one number."""
        self.measurements.append(Measurement(name, value, unit))


@dataclass(frozen=True)
class BudgetRow:
    """A budget and its plan: bytes beside what is pinned, seconds of recomputation."""

    room: int
    peak: int
    seconds: float
    bound: float
    flops: int


@dataclass(frozen=True)
class FrontierRow:
    """A point of torch's sweep, and our leanest plan that spends at most as many FLOPs.

    Attributes:
        ours, our_flops: of that plan; 0 where none spends so little.
        redrawn: random operators that torch's backward draws anew, a wrong gradient.
    """

    fraction: float
    torch: int
    torch_flops: int
    ours: int
    our_flops: int
    redrawn: int

    @property
    def ratio(self) -> float:
        """Our peak by torch's; infinite where no plan of ours spends so little."""
        return self.ours / self.torch if self.ours else float("inf")


def run(plan: Plan) -> SuiteResult:
    """All four parts."""
    size: Size = "small" if plan.quick else "full"
    found = Found()
    for name in NAMES:
        model = build(name, size)
        step = training_step(model.module, model.batch, model.loss)
        _budgets(name, step, plan.pick(BUDGETS, 5), found)
        if name == "gpt16":
            _frontier(name, step, plan.pick(20, 5), found)
    for nodes in tuple(PLAN_LIMITS)[: plan.pick(2, 1)]:
        _plan_time(nodes, found)
    _steps(size, plan, found)
    notes = tuple(" ".join(part.split()) for part in (__doc__ or "").split("\n\n"))
    return SuiteResult(
        "memory",
        tuple(found.measurements),
        tuple(found.checks),
        (*notes, *found.notes),
        found.details,
    )


def _budgets(name: str, step: TrainingStep, count: int, found: Found) -> None:
    planner = step.planner
    leanest = planner.lowest_plans[0]
    low, high = leanest.step.peak, step.unbudgeted.peak
    rows = []
    for number in range(count):
        room = low + (high - low) * number // (count - 1)
        planned = planner.within(room)
        if planned is None:
            continue
        seconds = _seconds(planned)
        bound = step.bound(room)
        flops = matmul_flops(planned.halves[1])
        rows.append(BudgetRow(room, planned.step.peak, seconds, min(bound, seconds), flops))
    whole = step.full_seconds
    step_ratio = max((whole + row.seconds) / (whole + row.bound) for row in rows)
    told = [row.seconds / row.bound for row in rows if row.bound > _NOTHING * whole]
    working, cut = step.floor(leanest)
    known = known_plans(step)
    found.measure(f"{name}: peak without a budget", high, "bytes")
    found.measure(f"{name}: lowest peak", low, "bytes")
    found.measure(f"{name}: largest working set", working, "bytes")
    found.measure(f"{name}: smallest cut", cut, "bytes")
    found.measure(f"{name}: recomputation / bound, worst", max(told, default=1.0), "x")
    found.measure(
        f"{name}: peak / estimate before fusion, worst",
        max(planned.step.peak / planned.combination.peak for planned in known),
        "x",
    )
    found.measure(f"{name}: seconds a trial", planner.trial_seconds / planner.trials, "s")
    found.checks += [
        Check(f"{name}: budgets that no plan fits", count - len(rows), "<=", 0),
        Check(f"{name}: budgets exceeded", sum(row.peak > row.room for row in rows), "<=", 0),
        Check(
            f"{name}: larger budgets with a slower plan",
            sum(after.seconds > before.seconds for before, after in pairwise(rows)),
            "<=",
            0,
        ),
        Check(
            f"{name}: larger budgets with a lower peak",
            sum(after.peak < before.peak for before, after in pairwise(rows)),
            "<=",
            0,
        ),
        Check(
            f"{name}: budgets for which a quicker plan is known",
            sum(
                any(
                    other.step.peak <= row.room and _seconds(other) < row.seconds for other in known
                )
                for row in rows
            ),
            "<=",
            0,
        ),
        Check(f"{name}: step / bound by the cost model, worst", step_ratio, "<=", TIME_LIMIT),
        Check(f"{name}: lowest peak / floor", low / (working + cut), "<=", FLOOR_LIMIT),
    ]
    found.details[f"{name}: budgets"] = {
        "rows": [asdict(row) for row in rows],
        "nodes": len(step.joint.graph.nodes),
        "kinds": [options.segments.kind for options in step.planner.options],
        "choices": [len(choices) for choices in step.planner.options[0].layers],
        "pinned": step.pinned.total,
        "step_seconds": whole,
        "lowest_peak_of_all_plans": min(planned.step.peak for planned in known),
        "plans": [
            {
                "size": planned.size,
                "estimate": planned.combination.peak,
                "forward": planned.step.forward.peak,
                "backward": planned.step.backward.peak,
                "peak": planned.step.peak,
                "seconds": _seconds(planned),
            }
            for planned in known
        ],
    }
    found.notes += [f"{name}: budget, peak (MB); recomputation, bound (ms); backward GFLOPs"]
    found.notes += [
        f"{row.room / 1e6:10.2f} {row.peak / 1e6:10.2f} {row.seconds * 1e3:10.3f} "
        f"{row.bound * 1e3:10.3f} {row.flops / 1e9:10.3f}"
        for row in rows
    ]


def known_plans(step: TrainingStep) -> list[Planned]:
    """All that budgets have been given so far, from the leanest on."""
    planner = step.planner
    found = [*planner._planned.values(), *planner.lowest_plans]
    return sorted(found, key=lambda planned: planned.step.peak)


def _seconds(planned: Planned) -> float:
    return planned.combination.seconds


def _frontier(name: str, step: TrainingStep, points: int, found: Found) -> None:
    planner = step.planner_by_flops
    swept = []
    for number in range(points):
        fraction = number / (points - 1)
        halves = split_with_budget(step.joint, step.inputs, fraction, **step.kwargs)
        swept.append((fraction, step.simulate(halves).peak, halves[1]))
    plans = [planner.at(peak) for _, peak, _ in swept]
    known = [planned for planned in plans if planned is not None] + planner.lowest_plans
    ours = [(planned.step.peak, matmul_flops(planned.halves[1])) for planned in known]
    rows = []
    for fraction, torch_peak, backward in swept:
        flops = matmul_flops(backward)
        peak, spent = min((pair for pair in ours if pair[1] <= flops), default=(0, 0))
        rows.append(FrontierRow(fraction, torch_peak, flops, peak, spent, len(redrawn(backward))))
    lowest = min(peak for peak, _ in ours) / min(row.torch for row in rows)
    tight = min(row.ratio for row in rows if row.fraction < TIGHT_HALF)
    found.checks += [
        Check(f"{name}: our lowest peak / torch's lowest", lowest, "<=", LOWEST_LIMIT),
        Check(
            f"{name}: peak / torch's at its FLOPs, best of its tight half", tight, "<=", TIGHT_LIMIT
        ),
        Check(
            f"{name}: peak / torch's at its FLOPs, worst",
            max(row.ratio for row in rows),
            "<=",
            1.0,
        ),
    ]
    found.details[f"{name}: frontier"] = {
        "rows": [asdict(row) for row in rows],
        "ours": ours,
    }
    found.notes += [f"{name}: torch's fraction, peak (MB), GFLOPs; ours, GFLOPs; ratio of peaks"]
    found.notes += [
        f"{row.fraction:8.3f} {row.torch / 1e6:10.2f} {row.torch_flops / 1e9:10.3f} "
        f"{row.ours / 1e6:10.2f} {row.our_flops / 1e9:10.3f} {row.ratio:8.3f}"
        for row in rows
    ]


def stack_of_layers(nodes: int) -> TrainingStep:
    """A step of equal narrow layers, with about as many nodes in its joint graph.

    Its tensors are large enough to have a storage each, as in a model worth a budget.
    """
    sizes = TextSizes(nodes // NODES_PER_LAYER, 32, 2, 88, batch=2, tokens=512, vocabulary=64)
    tokens = torch.arange(sizes.batch * sizes.tokens).view(sizes.batch, -1) % sizes.vocabulary
    return training_step(GPT(sizes).train(), {"inputs": tokens, "targets": tokens}, token_loss)


def _plan_time(nodes: int, found: Found) -> None:
    step = stack_of_layers(nodes)
    planner = step.planner
    started = time.perf_counter()
    room = (planner.ladder[0] + planner.ladder[-1]) // 2
    options_seconds = time.perf_counter() - started
    planned = planner.within(room)
    assert planned is not None
    name = f"plan of {len(step.joint.graph.nodes)} nodes"
    found.measure(f"{name}: capture", step.capture_seconds, "s")
    found.measure(f"{name}: choices", options_seconds, "s")
    found.measure(f"{name}: choices, plans, halves", planner.plan_seconds, "s")
    found.measure(f"{name}: trials", planner.trial_seconds, "s")
    found.measure(f"{name}: plans tried", planner.trials, "plans")
    found.checks.append(
        Check(f"{name}: seconds without trials", planner.plan_seconds, "<=", PLAN_LIMITS[nodes])
    )


def _steps(size: Size, plan: Plan, found: Found) -> None:
    model = build("gpt16", size)
    step = training_step(model.module, model.batch, model.loss)
    rooms = {f"{share:.0%}": int(step.unbudgeted.peak * share) for share in SHARES}
    lowest = step.planner.lowest_plans[0].step.peak
    rooms = {name: max(room, lowest) for name, room in rooms.items()} | {"lowest": lowest}
    contenders = {"no budget": _compiled(model.module, model.batch, model.loss)}
    for name, room in rooms.items():
        with recording() as record:
            call = _compiled(
                model.module, model.batch, model.loss, memory_budget=room + step.pinned.total
            )
        (report,) = record.budgets
        contenders[name] = call
        found.details[f"step within {name}"] = report.facts()
    samples = alternate(contenders, rounds=plan.pick(7, 3), seconds=0.1, warmup=1)
    for name, values in samples.items():
        found.measurements.append(
            Measurement(f"gpt16 step, {name}", statistics.median(values), "s", tuple(values))
        )
        found.measure(
            f"gpt16 step, {name}, by the step without",
            paired_ratio(values, samples["no budget"]),
            "x",
        )


def _compiled(
    module: nn.Module, batch: Batch, loss: Callable[..., Any], **options: Any
) -> Callable[[], None]:
    """A step that has run once."""
    torch._dynamo.reset()
    call = torch.compile(loss, backend="deepep", fullgraph=True, options={"strict": True} | options)

    def step() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        call(module, batch).backward()

    step()
    return step
