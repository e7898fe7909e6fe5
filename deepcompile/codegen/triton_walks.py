"""Walks over rows that are longer than a tile: what each of them computes.

A stage over the row is one walk. Of what earlier walks computed for a position it has reductions
only; the rest it computes, and loads, again.
"""

from __future__ import annotations

from ..ir.nest import Accumulate, Check, Instr, Kernel, Reduce, Store, operands


def walk_of(kernel: Kernel, number: int) -> list[Instr]:
    """What the walk for stage `number` does: the stage's effects and what they read.

    A value that only later walks read is computed there.
    """
    stage = kernel.stages[number]
    effects = [i for i in stage.body if isinstance(i, (Reduce, Accumulate, Store, Check))]
    before = kernel.stages[: number + 1]
    inside = {
        instr.id: instr
        for each in before
        if each.kind == "loop"
        for instr in each.body
        if not isinstance(instr, (Store, Reduce, Accumulate))
    }
    wanted: set[int] = set()
    stack = [read for instr in effects for read in operands(instr)]
    while stack:
        value = stack.pop()
        if value in inside and value not in wanted:
            wanted.add(value)
            stack += operands(inside[value])
    return [
        instr
        for each in before
        for instr in each.body
        if (each is stage and instr in effects)
        or (not isinstance(instr, (Store, Reduce, Accumulate)) and instr.id in wanted)
    ]
