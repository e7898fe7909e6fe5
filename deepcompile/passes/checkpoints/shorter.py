"""A model of many equal layers with fewer of them, on which choices are simulated.

What a choice costs is nearly always the same for all layers in the middle of a run of equal ones,
but for the gradients that are there by then; `place` compares before it relies on it. So most of a
long run is left out: what behind it reads tensors of layers that are left out reads those of the
layers before it, as many layers away as they were, and the other way round in backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch.fx import Graph, Node

from .joint import Joint
from .segments import Segments, find_crossing

_BLOCKS = 3
"""Blocks of segments that stay of a run: its start, its end, and one that has neighbours."""
_WORTH = 2
"""So many times more segments than stay must a run have."""


@dataclass(frozen=True)
class Shorter:
    """A joint graph without most of a run of equal segments.

    Attributes:
        joint: what is left, as nodes of its own.
        segments, backward: of it; see `Segments` and `backward_segments`.
        copies: by node of the whole graph, for what is left.
        gone: the segments of the whole graph that are left out.
        stands: of each segment of the whole graph, the one of this that stands for it.
        more: of each segment of the whole graph, bytes of gradients of later ones, beyond those
            that are there in this graph.
    """

    joint: Joint
    segments: Segments
    backward: dict[Node, int]
    copies: Mapping[Node, Node]
    gone: range
    stands: list[int]
    more: list[int]


def shorter(
    joint: Joint, segments: Segments, backward: Mapping[Node, int], group: int
) -> Shorter | None:
    """The graph without most of its longest run; None where that is short, or cannot be cut.

    Args:
        group: how many segments one choice may be for, in groups that begin with a run.
    """
    if not segments.runs:
        return None
    start, end = max(segments.runs, key=lambda run: run[1] - run[0])
    block = math.lcm(group, _period(segments.kind[start:end]))
    if end - start < _WORTH * _BLOCKS * block:
        return None
    first = start + (_BLOCKS - 1) * block
    gone = range(first, first + ((end - start) // block - _BLOCKS) * block)
    try:
        return _Cut(joint, segments, backward, gone, block).shorter()
    except LookupError:
        return None


def _period(kinds: list[int]) -> int:
    return next(
        period
        for period in range(1, len(kinds) + 1)
        if all(kinds[at] == kinds[at - period] for at in range(period, len(kinds)))
    )


class _Cut:
    """A graph without some segments; equal ones follow each other in blocks of a size."""

    def __init__(
        self,
        joint: Joint,
        segments: Segments,
        backward: Mapping[Node, int],
        gone: range,
        block: int,
    ) -> None:
        self.joint, self.segments, self.backward = joint, segments, backward
        self.gone, self.block = gone, block
        self.copies: dict[Node, Node] = {}
        self.segment = {node: segments.home[node] for node in joint.forward} | dict(backward)
        # By segment what it computes, of forward and of backward; and each node's place there.
        self.forward_of: list[list[Node]] = [[] for _ in range(segments.count)]
        self.backward_of: list[list[Node]] = [[] for _ in range(segments.count)]
        self.place: dict[Node, int] = {}
        for node, number in self.segment.items():
            members = self._alike(node)[number]
            self.place[node] = len(members)
            members.append(node)

    def shorter(self) -> Shorter:
        """The shorter graph.

        Raises:
            LookupError: when something is read from what is left out that has no equal.
        """
        joint, count = self.joint, self.segments.count
        graph = self._graph()
        found = Joint(
            graph,
            joint.forward_outputs,
            joint.rates,
            extra={self.copies[node] for node in joint.extra if node in self.copies},
            bit_exact=joint.bit_exact,
            sizes=joint.sizes,
        )
        # Values still tell of the storages of what is left out.
        found.take_bases(
            {copy: self._stand_in(node, joint.base(node)) for node, copy in self.copies.items()}
        )
        backward = self._left(self.backward)
        stands = [self._stands(number) for number in range(count)]
        later = _gradients_of_later(joint, self.backward, count)
        later_here = _gradients_of_later(found, backward, count - len(self.gone))
        more = [later[number] - later_here[stands[number]] for number in range(count)]
        return Shorter(found, self._segments(found), backward, self.copies, self.gone, stands, more)

    def _graph(self) -> Graph:
        graph = Graph()
        outputs = self.joint.outputs
        for node in self.joint.graph.nodes:
            if node.op != "output" and not self._is_gone(node):
                self.copies[node] = graph.node_copy(node, partial(self._stand_in, node))
        for node in outputs[: self.joint.forward_outputs]:
            if isinstance(node, Node) and self._is_gone(node):
                raise LookupError("an output of what is left out")
        graph.output(
            tuple(
                self.copies[node] if isinstance(node, Node) else node
                for node in outputs
                if not (isinstance(node, Node) and self._is_gone(node))
            )
        )
        return graph

    def _segments(self, found: Joint) -> Segments:
        left = [number for number in range(self.segments.count) if number not in self.gone]
        segments = Segments(
            len(left),
            home=self._left(self.segments.home),
            cheap={self.copies[node] for node in self.segments.cheap if node in self.copies},
            kind=[self.segments.kind[number] for number in left],
            members=[
                [self.copies[node] for node in self.segments.members[number]] for number in left
            ],
        )
        find_crossing(found, segments)
        return segments

    def _left(self, numbers: Mapping[Node, int]) -> dict[Node, int]:
        """Segments of nodes, as they are in the shorter graph."""
        return {
            self.copies[node]: self._stands(number)
            for node, number in numbers.items()
            if node in self.copies
        }

    def _is_gone(self, node: Node) -> bool:
        return self.segment.get(node) in self.gone

    def _alike(self, node: Node) -> list[list[Node]]:
        return self.backward_of if node in self.backward else self.forward_of

    def _stands(self, segment: int) -> int:
        """The segment of the shorter graph for one of the whole."""
        if segment in self.gone:  # one of the block before what is left out
            return self.gone.start - self.block + (segment - self.gone.start) % self.block
        return segment if segment < self.gone.start else segment - len(self.gone)

    def _stand_in(self, reader: Node, source: Node) -> Node:
        """What a reader that is left reads for `source`.

        Raises:
            LookupError: when nothing that is left is as far away as that is.
        """
        if source in self.copies:
            return self.copies[source]
        number = self.segment[source]
        away = len(self.gone) * (1 if self.segment[reader] < self.gone.start else -1)
        if number + away < 0:
            raise LookupError("nothing is as far away")
        members = self._alike(source)
        equal = members[number + away][self.place[source]]
        if len(members[number + away]) != len(members[number]) or equal.target != source.target:
            raise LookupError("segments that are not equal")
        return self.copies[equal]


def _gradients_of_later(joint: Joint, backward: Mapping[Node, int], count: int) -> list[int]:
    """Of each segment, bytes of gradients that are there before its own: those of later ones."""
    made = [0] * (count + 1)
    gradients = joint.outputs[joint.forward_outputs :]
    for node in dict.fromkeys(joint.base(n) for n in gradients if isinstance(n, Node)):
        if node in backward:
            made[backward[node]] += joint.nbytes(node)
    for number in reversed(range(count)):
        made[number] += made[number + 1]
    return made[1:]
