"""A training step as the planner of checkpoints sees it: its joint graph, plans, peaks, bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.torch_budget import joint_graph
from deepcompile.backend import _Compiler
from deepcompile.budget.planner import Halves, Planned, StepPlanner
from deepcompile.budget.split import BudgetedSplit
from deepcompile.budget.step import Pinned, StepTimeline, pinned_bytes
from deepcompile.capture import torch_private
from deepcompile.codegen.steps import KernelStep, ProgramSpec, Step, touched
from deepcompile.codegen.timeline import ARENA, SCRATCH, Timeline
from deepcompile.cost.rates import Rates
from deepcompile.options import Options
from deepcompile.passes.checkpoints.joint import Joint
from deepcompile.passes.checkpoints.place import backward_live, forward_live

_ENDLESS = 1 << 50


@dataclass
class TrainingStep:
    """One step of a model: captured, not run.

    Attributes:
        joint, inputs, kwargs: what torch hands to a partition function.
        split: what a compile with `memory_budget` splits with.
        facts: of the joint graph.
        capture_seconds: of Dynamo, AOTAutograd and the joint passes.
        programs: what the last simulation made of forward and backward.
    """

    joint: GraphModule
    inputs: Sequence[Any]
    kwargs: dict[str, Any]
    split: BudgetedSplit
    facts: Joint
    capture_seconds: float
    programs: list[ProgramSpec] = field(default_factory=list)

    @property
    def static(self) -> tuple[int, ...]:
        """Numbers of the inputs that are parameters or buffers."""
        return tuple(self.kwargs.get("static_lifetime_input_indices") or ())

    @cached_property
    def pinned(self) -> Pinned:
        """What is in memory all through, whatever is planned; the optimizer's state is guessed."""
        return pinned_bytes(self.facts, self.static, None)

    @cached_property
    def planner(self) -> StepPlanner:
        """Its plans are kept, so that a second question about a size costs nothing."""
        return StepPlanner(self.joint, self.facts, self.simulate, self.static)

    @cached_property
    def planner_by_flops(self) -> StepPlanner:
        """One for which FLOPs of products are all that costs."""
        rates = Rates("FLOPs alone", bandwidth=1e30, launch=0.0, flops={"f32": 1e12}, link=1e30)
        facts = Joint(self.joint.graph, self.kwargs["num_fwd_outputs"], rates)
        return StepPlanner(self.joint, facts, self.simulate, self.static)

    @cached_property
    def unbudgeted(self) -> StepTimeline:
        """Torch's default split, in programs that follow lifetimes."""
        halves = torch_private.split_joint_graph(self.joint, self.inputs, **self.kwargs)
        return self.simulate(halves)

    @cached_property
    def full_seconds(self) -> float:
        """A step by the cost model when all that helps is kept."""
        options = self.planner.options[0]
        backward = options.recompute([parts[0] for parts in options.parts])
        walks = forward_live(self.facts, backward.saved), backward_live(self.facts, backward)
        return sum(sum(walk.seconds) for walk in walks)

    def simulate(self, halves: Halves, facts: Joint | None = None) -> StepTimeline:
        """Peaks of two halves, after our passes, in programs that follow lifetimes."""
        self.programs.clear()
        return self.split.simulate(halves, facts or self.facts, follow_lifetimes=True)

    def bound(self, room: int) -> float:
        """Seconds of recomputation that no combination of the choices undercuts within `room`."""
        return self.planner.bound(room)

    def floor(self, planned: Planned) -> tuple[int, int]:
        """What no plan avoids: the largest working set of a step, and the smallest cut.

        A step of the program of `planned` needs what it reads and what it writes, each in memory of
        its own; in backward also the gradients that are there already, and the outputs of forward
        that the user holds. The cut is the least that passes between two parts of the model. Both
        together are the floor, which programs may undercut: they write results over operands, and
        some of the cut may be what the step reads.
        """
        step = self.simulate(planned.halves)
        forward, backward = self.programs
        most = max(
            largest_working_set(forward, step.forward, outputs_stay=False),
            largest_working_set(backward, step.backward, outputs_stay=True) + step.held,
        )
        segments = self.planner.options[0].segments
        cuts = [
            sum(
                self.facts.nbytes(node)
                for node, last in segments.crossing.items()
                if segments.home[node] < number <= last
            )
            for number in range(1, segments.count)
        ]
        return most, min((cut for cut in cuts if cut), default=0)


def training_step(
    module: nn.Module,
    batch: dict[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
) -> TrainingStep:
    """Capture a step of `module` as a compile with a memory budget does."""
    started = time.perf_counter()
    joint, inputs, kwargs = joint_graph(module, batch, loss)
    seconds = time.perf_counter() - started
    options = Options.resolve({"strict": True, "memory_budget": _ENDLESS}, None)
    split = _Compiler(options)._budgeted_split()
    assert split is not None
    facts = Joint(joint.graph, kwargs["num_fwd_outputs"], split.rates)
    step = TrainingStep(joint, inputs, kwargs, split, facts, seconds)
    make_program = split.make_program

    def keeping(*args: Any) -> ProgramSpec:
        step.programs.append(make_program(*args))
        return step.programs[-1]

    split.make_program = keeping
    return step


def largest_working_set(program: ProgramSpec, times: Timeline, *, outputs_stay: bool) -> int:
    """The most bytes that one step of a program touches, with the outputs that are made by then.

    Operands that a kernel writes its results over count twice. What ATen takes inside the call is
    part of it.
    """
    over = {slot.number: slot.view_of for slot in program.slots}
    most = 0
    for number, step in enumerate(program.steps):
        slots = set(touched(step))
        for slot in tuple(slots):
            below = over[slot]
            while below is not None:
                slots.add(below)
                below = over[below]
        written_over = _written_over(step)
        slots.add(SCRATCH)
        if any(program.slots[slot].storage == "arena" for slot in slots):
            slots.add(ARENA)
        there = (
            span.nbytes * (1 + (span.slot in written_over))
            for span in times.spans
            if span.first <= number <= span.last
            and (span.slot in slots or (outputs_stay and span.role == "output"))
        )
        most = max(most, sum(there))
    return most


def _written_over(step: Step) -> set[int]:
    if not isinstance(step, KernelStep):
        return set()
    buffers = zip(step.slots, step.op.nest.buffers, strict=True)
    return {slot for slot, buffer in buffers if buffer.role == "inout"}
