"""The maximum of a row and the sum of exponentials from it, found in one walk over the row.

Written as it reads, the sum needs a second walk once the maximum is known. The state of `lse` keeps
both (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ..ir.nest import Apply, Const, Instr, Kernel, Reduce, Store
from ..ir.stages import place


def with_one_walk(kernel: Kernel) -> Kernel:
    """`kernel` with each maximum and sum of exponentials from it as one reduction.

    Before:
        v1 = reduce max v0
        v4 = reduce sum v3  # v3 = exp(v0 - v1)
    After:
        v1 = reduce lse.maximum v0
        v5 = reduce lse.sum v0
        v4 = where isinf(v1) nan v5  # inf - inf
    """
    values = {i.id: i for i in kernel.instructions() if not isinstance(i, Store)}
    found = {
        instr.id: top
        for instr in values.values()
        if isinstance(instr, Reduce) and (top := _maximum_below(instr, values)) is not None
    }
    if not found:
        return kernel
    tops = {top.id for top in found.values()}
    number = max(values) + 1
    made: list[Instr] = []
    for instr in kernel.instructions():
        if isinstance(instr, Reduce) and instr.id in tops:
            made.append(replace(instr, kind="lse", part="maximum"))
        elif isinstance(instr, Reduce) and instr.id in found:
            top = found[instr.id]
            made += [
                Reduce(number, instr.dtype, "lse", "sum", top.arg),
                Apply(number + 1, "b1", "isinf", (top.id,)),
                Const(number + 2, instr.dtype, math.nan),
                Apply(instr.id, instr.dtype, "where", (number + 1, number + 2, number)),
            ]
            number += 3
        else:
            made.append(instr)
    reduced = frozenset(axis.name for axis in kernel.reduced)
    return replace(kernel, stages=place(made, reduced))


def _maximum_below(total: Reduce, values: Mapping[int, Instr]) -> Reduce | None:
    """The maximum from which a sum takes its exponentials."""
    power = values[total.arg]
    if total.kind != "sum" or not isinstance(power, Apply) or power.op != "exp":
        return None
    away = values[power.args[0]]
    if not isinstance(away, Apply) or away.op != "sub":
        return None
    value, top = away.args
    maximum = values[top]
    if isinstance(maximum, Reduce) and maximum.kind == "max" and maximum.arg == value:
        return maximum
    return None
