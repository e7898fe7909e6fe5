"""What a training step holds: what is pinned all through, and the programs of its two halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from ..codegen.timeline import ARENA, Timeline
from ..passes.checkpoints.joint import Joint, bytes_of, is_tangent


@dataclass(frozen=True)
class Pinned:
    """Bytes that are there through the whole step, whatever is planned.

    Attributes:
        parameters: parameters, buffers and other inputs of the step.
        optimizer: state of the optimizer.
        others: what other graphs of the model hold.
    """

    parameters: int
    optimizer: int
    others: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.optimizer + self.others


@dataclass(frozen=True)
class StepTimeline:
    """A training step as it will run: what forward and backward hold beside what is pinned.

    Attributes:
        forward, backward: of the two programs.
        held: bytes of outputs of forward that the user may hold during backward.
        forward_labels, backward_labels: names for the slots of the programs.
        forward_calls, backward_calls: by step, the node of the graph that it calls an operator for.
    """

    forward: Timeline
    backward: Timeline
    held: int
    forward_labels: dict[int, str] = field(default_factory=dict)
    backward_labels: dict[int, str] = field(default_factory=dict)
    forward_calls: dict[int, str] = field(default_factory=dict)
    backward_calls: dict[int, str] = field(default_factory=dict)

    @property
    def highest(self) -> tuple[str, Timeline]:
        """The program in which the highest moment is."""
        if self.forward.peak > self.backward.peak + self.held:
            return "forward", self.forward
        return "backward", self.backward

    @property
    def peak(self) -> int:
        """Bytes at the highest moment.

        The blocks of small intermediates of the two programs are one: a pool keeps the larger.
        """
        blocks = [_block(self.forward), _block(self.backward)]
        rest = [self.forward.peak - blocks[0], self.backward.peak - blocks[1] + self.held]
        return max(rest) + max(blocks)


def _block(program: Timeline) -> int:
    return sum(span.nbytes for span in program.spans if span.slot == ARENA)


def pinned_bytes(
    facts: Joint, static: Sequence[int], optimizer_bytes: int | None, others: int = 0
) -> Pinned:
    """What is in memory through the whole step.

    Args:
        facts: of the joint graph.
        static: which inputs are parameters and buffers.
        optimizer_bytes: state of the optimizer; it is guessed for None.
        others: what graphs before this one hold. Inputs that are no parameters come from those,
            and are among it.
    """
    primals = [n for n in facts.position if n.op == "placeholder" and not is_tangent(n)]
    counted = [n for at, n in enumerate(primals) if at in static or not others]
    parameters = sum(bytes_of(n) for n in counted if facts.base(n) is n)
    if optimizer_bytes is not None:
        return Pinned(parameters, optimizer_bytes, others)
    gradients = facts.outputs[facts.forward_outputs :]
    trained = [
        primals[number]
        for number, gradient in enumerate(gradients)
        if isinstance(gradient, Node) and number in static and number < len(primals)
    ]
    state = sum(2 * 4 * bytes_of(n) // n.meta["val"].element_size() for n in trained)
    return Pinned(parameters, state, others)
