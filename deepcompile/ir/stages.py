"""Placing instructions in the stages of a kernel."""

from __future__ import annotations

from collections.abc import Iterable

from .index import Index
from .nest import Accumulate, Instr, Load, Reduce, Stage, StageKind, Store, operands


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

    Every instruction goes to the earliest stage that its operands allow, except that what only the
    stages after all points read is computed there. Stores go last in their stage, and to a buffer
    that is also loaded in the last loop: later loops may load again what an earlier one computed.
    """
    order = list(instrs)
    loaded = {instr.buffer for instr in order if isinstance(instr, Load)}
    loops = _in_loops(order, reduced)
    late = _late(order, loops, reduced)
    level: dict[int, int] = {}
    placed: dict[tuple[StageKind, int], list[Instr]] = {}
    stores: dict[tuple[StageKind, int], list[Instr]] = {}
    in_place: list[Store] = []
    for number, instr in enumerate(order):
        at = max((level[read] for read in operands(instr)), default=0)
        kind: StageKind
        if number in late:
            kind, at = late[number], 0
        elif isinstance(instr, Accumulate):
            kind = "loop" if loops[instr.arg] else "row"
        elif isinstance(instr, Reduce):
            kind = "loop"
        elif isinstance(instr, Store):
            loop = bool(index_names(instr) & reduced) or loops[instr.value]
            kind = "loop" if loop else "row"
        else:
            kind = "loop" if loops[instr.id] else "row"
        if isinstance(instr, Store):
            if kind == "loop" and instr.buffer in loaded:
                in_place.append(instr)
            else:
                stores.setdefault((kind, at), []).append(instr)
            continue
        placed.setdefault((kind, at), []).append(instr)
        level[instr.id] = 0 if isinstance(instr, Accumulate) else at + isinstance(instr, Reduce)
    stages: list[Stage] = []
    deepest = max((at for _, at in [*placed, *stores]), default=0)
    if in_place:
        deepest = max([deepest, *(level[instr.value] for instr in in_place)])
        stores.setdefault(("loop", deepest), []).extend(in_place)
    keys: list[tuple[StageKind, int]] = []
    for at in range(deepest + 1):
        keys += [("row", at), ("loop", at)]
    keys += [("total", 0), ("columns", 0)]
    for key in keys:
        body = placed.get(key, []) + stores.get(key, [])
        if body:
            stages.append(Stage(key[0], tuple(body)))
    return tuple(stages)


def _in_loops(order: list[Instr], reduced: frozenset[str]) -> dict[int, bool]:
    loops: dict[int, bool] = {}
    for instr in order:
        if isinstance(instr, Store):
            continue
        loops[instr.id] = not isinstance(instr, Reduce) and (
            bool(index_names(instr) & reduced) or any(loops[read] for read in operands(instr))
        )
    return loops


def _late(
    order: list[Instr], loops: dict[int, bool], reduced: frozenset[str]
) -> dict[int, StageKind]:
    """Place in `order` -> the stage after all points, of what belongs there."""
    by_value: dict[int, StageKind] = {}
    late: dict[int, StageKind] = {}
    users: dict[int, list[int]] = {}
    for number, instr in enumerate(order):
        reads = operands(instr)
        for read in reads:
            users.setdefault(read, []).append(number)
        if isinstance(instr, Accumulate):
            by_value[instr.id] = "columns" if loops[instr.arg] else "total"
            continue
        finish = {by_value[read] for read in reads if read in by_value}
        if not finish:
            continue
        loop = any(loops[read] for read in reads) or bool(index_names(instr) & reduced)
        kind: StageKind = "columns" if loop or "columns" in finish else "total"
        late[number] = kind
        if not isinstance(instr, Store):
            by_value[instr.id] = kind
    for number in range(len(order) - 1, -1, -1):
        instr = order[number]
        if number in late or isinstance(instr, (Store, Reduce, Accumulate)):
            continue
        read_by = users.get(instr.id, [])
        if not read_by or any(user not in late for user in read_by):
            continue
        kinds = {late[user] for user in read_by}
        late[number] = "columns" if loops[instr.id] or "total" not in kinds else "total"
    return late
