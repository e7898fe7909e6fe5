"""Placing instructions in the stages of a kernel."""

from __future__ import annotations

from collections.abc import Iterable

from .index import Index
from .nest import Accumulate, Instr, Reduce, Stage, StageKind, Store, operands


def index_names(instr: Instr) -> frozenset[str]:
    """Every axis, size and value name in the index expressions of an instruction."""
    found: frozenset[str] = frozenset()
    for attribute in ("index", "offset", "low", "high"):
        index = getattr(instr, attribute, None)
        if isinstance(index, Index):
            found |= index.names()
    return found


def place(instrs: Iterable[Instr], reduced: frozenset[str]) -> tuple[Stage, ...]:
    """Stages for instructions given in dependency order; `reduced` names the reduced axes.

    Every instruction goes to the earliest stage that its operands allow; stores go last in theirs.
    """
    level: dict[int, int] = {}
    loops: dict[int, bool] = {}
    late: dict[int, StageKind] = {}
    placed: dict[tuple[StageKind, int], list[Instr]] = {}
    stores: dict[tuple[StageKind, int], list[Instr]] = {}
    for instr in instrs:
        reads = operands(instr)
        at = max((level[read] for read in reads), default=0)
        loop = bool(index_names(instr) & reduced) or any(loops[read] for read in reads)
        finish = {late[read] for read in reads if read in late}
        if isinstance(instr, Reduce):
            placed.setdefault(("loop", at), []).append(instr)
            level[instr.id], loops[instr.id] = at + 1, False
            continue
        if isinstance(instr, Accumulate):
            loop = loops[instr.arg]
            placed.setdefault(("loop" if loop else "row", at), []).append(instr)
            level[instr.id], loops[instr.id] = 0, loop
            late[instr.id] = "columns" if loop else "total"
            continue
        kind: StageKind
        if finish:
            kind = "columns" if loop or "columns" in finish else "total"
            at = 0
        else:
            kind = "loop" if loop else "row"
        if isinstance(instr, Store):
            stores.setdefault((kind, at), []).append(instr)
            continue
        placed.setdefault((kind, at), []).append(instr)
        level[instr.id], loops[instr.id] = at, loop
        if finish:
            late[instr.id] = kind
    stages: list[Stage] = []
    deepest = max((at for _, at in [*placed, *stores]), default=0)
    order: list[tuple[StageKind, int]] = []
    for at in range(deepest + 1):
        order += [("row", at), ("loop", at)]
    order += [("total", 0), ("columns", 0)]
    for key in order:
        body = placed.get(key, []) + stores.get(key, [])
        if body:
            stages.append(Stage(key[0], tuple(body)))
    return tuple(stages)
