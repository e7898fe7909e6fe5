"""What a training step holds: what is pinned all through, and the programs of its two halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from ..codegen.timeline import ARENA, Timeline
from ..passes.checkpoints.joint import Joint, is_tangent


@dataclass(frozen=True)
class Pinned:
    """Bytes that are there through the whole step, whatever is planned.

    Attributes:
        parameters: parameters, buffers and other inputs of the step.
        optimizer: state of the optimizer.
        others: what other graphs of the model hold.
        gradients: of the parameters; they come to be in backward and stay. No part of the total.
        copy: what it takes to run with other parameters too: those, and the state of their
            optimizer where that is guessed. No part of the total.
    """

    parameters: int
    optimizer: int
    others: int = 0
    gradients: int = 0
    copy: int = 0

    @property
    def total(self) -> int:
        """All that is there from the start."""
        return self.parameters + self.optimizer + self.others

    @property
    def own(self) -> int:
        """What the graph itself has in memory whenever it does not run."""
        return self.parameters + self.optimizer


@dataclass(frozen=True)
class StepTimeline:
    """A training step as it will run: what forward and backward hold beside what is pinned.

    Attributes:
        forward, backward: of the two programs.
        held: bytes of outputs of forward that the user may hold during backward.
        forward_labels, backward_labels: names for the slots of the programs.
        forward_calls, backward_calls: by step, the node of the graph that it calls an operator for.
        undelayed: the same step as it would be if copies to and from the host took no time: nothing
            stays for one that runs, or is there early for it. None where it has no such copies.
    """

    forward: Timeline
    backward: Timeline
    held: int
    forward_labels: dict[int, str] = field(default_factory=dict)
    backward_labels: dict[int, str] = field(default_factory=dict)
    forward_calls: dict[int, str] = field(default_factory=dict)
    backward_calls: dict[int, str] = field(default_factory=dict)
    undelayed: StepTimeline | None = None

    @property
    def highest(self) -> tuple[str, Timeline]:
        """The program in which the highest moment is."""
        if self.forward.peak > self.backward.peak + self.held:
            return "forward", self.forward
        return "backward", self.backward

    @property
    def forward_peak(self) -> int:
        """Bytes at the highest moment of forward.

        The blocks of small intermediates of the two programs are one: a pool keeps the larger.
        """
        return self.forward.peak - _block(self.forward) + self._block

    @property
    def backward_peak(self) -> int:
        """Bytes at the highest moment of backward."""
        return self.backward.peak - _block(self.backward) + self.held + self._block

    @property
    def peak(self) -> int:
        """Bytes at the highest moment."""
        return self.peak_beside(0)

    def peak_beside(self, later: int) -> int:
        """The same where backward has so many bytes of other graphs beside it."""
        return max(self.forward_peak, self.backward_peak + later)

    @property
    def saved(self) -> int:
        """Bytes that are there when forward has ended: its outputs and what backward needs."""
        return self.forward.live(self.forward.steps)

    @property
    def _block(self) -> int:
        return max(_block(self.forward), _block(self.backward))


def _block(program: Timeline) -> int:
    return sum(span.nbytes for span in program.spans if span.slot == ARENA)


def pinned_bytes(
    facts: Joint,
    static: Sequence[int],
    optimizer_bytes: int | None,
    others: int = 0,
    first: bool = True,
) -> Pinned:
    """What is in memory through the whole step.

    Args:
        facts: of the joint graph.
        static: which inputs are parameters and buffers.
        optimizer_bytes: state of the optimizer of all graphs, which counts for the first of them;
            it is guessed for None.
        others: what other graphs hold.
        first: whether no graph runs before this one. Else inputs that are no parameters come from
            those, and are among `others`.
    """
    primals = [n for n in facts.position if n.op == "placeholder" and not is_tangent(n)]
    counted = [n for at, n in enumerate(primals) if at in static or first]
    parameters = sum(facts.nbytes(n) for n in counted if facts.base(n) is n)
    again = sum(
        facts.nbytes(n) for at, n in enumerate(primals) if at in static and facts.base(n) is n
    )
    gradients = facts.outputs[facts.forward_outputs :]
    trained = [
        primals[number]
        for number, gradient in enumerate(gradients)
        if isinstance(gradient, Node)
        and number in static
        and number < len(primals)
        # Meshes of DTensors are among the inputs and gradients too.
        and isinstance(primals[number].meta.get("val"), torch.Tensor)
    ]
    gradient_bytes = sum(facts.nbytes(n) for n in trained)
    if optimizer_bytes is not None:
        given = optimizer_bytes if first else 0
        return Pinned(parameters, given, others, gradient_bytes, again)
    state = sum(2 * 4 * facts.nbytes(n) // n.meta["val"].element_size() for n in trained)
    return Pinned(parameters, state, others, gradient_bytes, again + state)
