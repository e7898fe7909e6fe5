"""Which values a node reads, and at which positions: its rule run on a recording builder."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from ...ir.index import Index
from ...ir.nest import Apply, Load, Rand
from ...ir.ops import OPS, REGISTER_OF
from .builder import Builder
from .rules import lower
from .shapes import Facts
from .views import Position, is_view, view_position, view_source


@dataclass(frozen=True)
class Access:
    """What computing a node at `position` takes.

    Attributes:
        position: the node's own position, in fresh axes.
        operand: for a reduction, the position of its operand; else None.
        reads: (computed or stored node, position) in the order of reading.
        cost: scalar work per element, an addition counting 1.
    """

    axes: tuple[tuple[str, Index], ...]
    position: Position
    operand: Position | None
    reads: tuple[tuple[Node, Position], ...]
    cost: float


class Probe(Builder):
    """A builder that computes nothing: it records what a rule asks for."""

    def __init__(self, facts: Facts, axes: list[tuple[str, Index]]) -> None:
        super().__init__(facts, axes, [], lambda node: None, lower)
        self.reads: list[tuple[Node, Position]] = []

    def value(self, node: Node, position: Position) -> int:
        """Record a read, seen through views."""
        dtype = self.facts[node].dtype
        while is_view(node):
            position = view_position(node, position, self.facts, self.extents)
            node = view_source(node)
        self.reads.append((node, position))
        number = len(self.reads)
        return self.code.emit(
            lambda id: Load(id, REGISTER_OF[dtype], f"{node.name}.{number}", Index.of(0)), ()
        )

    def reduce(
        self, kind: str, part: str, value: int, register: str, covered: frozenset[str]
    ) -> int:
        """Stand in for the result of a reduction."""
        if not covered:
            return super().reduce(kind, part, value, register, covered)
        return self.code.emit(
            lambda id: Load(id, register, f"reduce.{kind}.{part}.{value}", Index.of(0)), (value,)
        )

    def cost(self) -> float:
        """The work of what was asked for."""
        total = 0.0
        for instr in self.code.values:
            if isinstance(instr, Apply):
                total += OPS[instr.op].cost
            elif isinstance(instr, Rand):
                total += 20.0
        return total


def probe(node: Node, facts: Facts, fresh: str) -> Access:
    """Run a node's rule once; axes are named `fresh` + number.

    Raises:
        CannotLower: when kernels do not know the node.
    """
    from .reductions import check_reduction, reduction_of

    reduction = reduction_of(node)
    if reduction is not None and reduction.is_single(facts):
        reduction = None
    shape = facts[node].shape if reduction is None else facts[reduction.source].shape
    axes: list[tuple[str, Index]] = []
    domain: list[Index] = []
    for size in shape:
        if size.constant() == 1:
            domain.append(Index.of(0))
            continue
        name = f"{fresh}{len(axes)}"
        axes.append((name, size))
        domain.append(Index.of(name))
    recorder = Probe(facts, axes)
    if reduction is None:
        position = tuple(domain)
        lower(recorder, node, position)
        return Access(tuple(axes), position, None, tuple(recorder.reads), recorder.cost())
    check_reduction(node, reduction, facts)
    operand = tuple(domain)
    position = reduction.output_position(operand)
    recorder.reductions[node] = operand
    recorder.reduced = axes
    lower(recorder, node, position)
    return Access(tuple(axes), position, operand, tuple(recorder.reads), recorder.cost() + 1)
