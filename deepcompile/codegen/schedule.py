"""How a kernel runs on a CPU, as data: vector axis, loop order, what is kept between stages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..ir.index import ONE, Index, product
from ..ir.monoids import depends_on_order
from ..ir.nest import (
    Accumulate,
    Apply,
    Axis,
    Cast,
    Check,
    Const,
    IndexValue,
    InRange,
    Instr,
    Kernel,
    Load,
    Rand,
    Reduce,
    Store,
    Valued,
    index_values,
    operands,
)
from ..ir.ops import OPS
from ..ir.stages import index_names, place

LANES = 16
KEEP_ELEMENTS = 16384
"""Row values are kept between loops up to this many elements (64 KiB of f32, in L1 or L2)."""
_HEAVY = 8.0


@dataclass(frozen=True)
class CpuSchedule:
    """The decisions for one kernel.

    Attributes:
        vector: the axis along which 16 elements are computed at once, None for a single value.
        outer: parallel axes that are flattened and shared among threads, outermost first.
        rows: reduced axes in loop order (the vector axis last, if it is reduced).
        kept: loop values stored in a row buffer by the stage that has them first.
        chunk: for a parallel vector axis, how many of its elements one work unit takes.
        cost: estimated work per position, an addition counting 1.
    """

    vector: str | None
    outer: tuple[str, ...]
    rows: tuple[str, ...]
    kept: frozenset[int]
    chunk: int
    cost: float


def dependence(kernel: Kernel) -> dict[int, frozenset[str]]:
    """For every value, the axes it varies along."""
    axes = frozenset(kernel.extents)
    reduced = frozenset(axis.name for axis in kernel.reduced)
    parallel = axes - reduced
    found: dict[int, frozenset[str]] = {}
    for instr in kernel.instructions():
        if isinstance(instr, Store):
            continue
        names = index_names(instr) & axes
        for read in operands(instr):
            names |= found[read]
        if isinstance(instr, Reduce):
            names -= reduced
        if isinstance(instr, Accumulate):
            names -= parallel
        found[instr.id] = names
    return found


def expand(kernel: Kernel, *, keeps_order: bool = False) -> Kernel:
    """The kernel with its reductions in the form that suits a CPU.

    Args:
        keeps_order: a sum is a sum: what it is settled to could differ from it, in the sign of 0.
    """
    expanded = expand_monoids(kernel)
    return expanded if keeps_order else settle_one_hot_sums(expanded)


def settle_one_hot_sums(kernel: Kernel) -> Kernel:
    """Replace the sum over a row of `where(position == t, a, 0)` by `where(0 <= t < length, a, 0)`.

    The gradient of cross-entropy sums such a row; this saves its pass.
    """
    if len(kernel.reduced) != 1:
        return kernel
    axis = kernel.reduced[0]
    definition = {i.id: i for i in kernel.instructions() if not isinstance(i, Store)}
    varies = dependence(kernel)
    count = 1 + max(definition, default=0)
    instrs: list[Instr] = []
    changed = False
    for instr in kernel.instructions():
        found = _one_hot(instr, definition, varies, axis)
        if found is None:
            instrs.append(instr)
            continue
        where, target = found
        assert isinstance(instr, Reduce)
        inside = InRange(count, "b1", Index.of(f"v{target}"), Index.of(0), axis.extent)
        arguments = (count, *where.args[1:])
        instrs += [inside, Apply(instr.id, instr.dtype, "where", arguments)]
        count += 1
        changed = True
    if not changed:
        return kernel
    return replace(kernel, stages=place(instrs, frozenset({axis.name})))


def _one_hot(
    instr: Instr,
    definition: dict[int, Valued],
    varies: dict[int, frozenset[str]],
    axis: Axis,
) -> tuple[Apply, int] | None:
    if not (isinstance(instr, Reduce) and instr.kind == "sum"):
        return None
    where = definition[instr.arg]
    if not (isinstance(where, Apply) and where.op == "where"):
        return None
    test, value, other = (definition[argument] for argument in where.args)
    if not (isinstance(other, Const) and other.value == 0) or axis.name in varies[value.id]:
        return None
    if not (isinstance(test, Apply) and test.op == "eq"):
        return None
    for here, there in (test.args, test.args[::-1]):
        position = definition[here]
        if (
            isinstance(position, IndexValue)
            and position.index == Index.of(axis.name)
            and axis.name not in varies[there]
            and definition[there].dtype == "i64"
        ):
            return where, there
    return None


def expand_monoids(kernel: Kernel) -> Kernel:
    """Replace one-pass monoids by passes over the row, which stays in cache: more exact, and fast.

    `welford` becomes a sum and a sum of squared differences; `lse` a maximum and a sum of
    exponentials.
    """
    if not any(
        isinstance(i, Reduce) and i.kind in ("welford", "lse") for i in kernel.instructions()
    ):
        return kernel
    instrs: list[Instr] = []
    rename: dict[int, int] = {}
    count = 1 + max(i.id for i in kernel.instructions() if not isinstance(i, Store))
    made: dict[tuple[str, str, int], int] = {}

    def add(make: Valued) -> int:
        instrs.append(make)
        return make.id

    def fresh() -> int:
        nonlocal count
        count += 1
        return count - 1

    def first(kind: str, value: int, dtype: str) -> int:
        """The mean (welford) or the maximum (lse)."""
        known = made.get((kind, "first", value))
        if known is not None:
            return known
        if kind == "lse":
            result = add(Reduce(fresh(), dtype, "max", "", value))
        else:
            # In f64, so that the mean of equal numbers is that number and their variance is 0.
            wide = add(Cast(fresh(), "f64", value, "f64"))
            total = add(Reduce(fresh(), "f64", "sum", "", wide))
            length = product([axis.extent for axis in kernel.reduced])
            number = add(IndexValue(fresh(), "i64", length))
            divisor = add(Cast(fresh(), "f64", number, "f64"))
            mean = add(Apply(fresh(), "f64", "div", (total, divisor)))
            result = mean if dtype == "f64" else add(Cast(fresh(), dtype, mean, dtype))
        made[(kind, "first", value)] = result
        return result

    for instr in _topological(kernel):
        if not (isinstance(instr, Reduce) and instr.kind in ("welford", "lse")):
            instrs.append(_renamed(instr, rename))
            continue
        value = rename.get(instr.arg, instr.arg)
        head = first(instr.kind, value, instr.dtype)
        if instr.part in ("mean", "max"):
            rename[instr.id] = head
            continue
        if instr.kind == "lse":
            infinite = add(Apply(fresh(), "b1", "isinf", (head,)))
            zero = add(Const(fresh(), instr.dtype, 0.0))
            shift = add(Apply(fresh(), instr.dtype, "where", (infinite, zero, head)))
            away = add(Apply(fresh(), instr.dtype, "sub", (value, shift)))
            term = add(Apply(fresh(), instr.dtype, "exp", (away,)))
        else:
            away = add(Apply(fresh(), instr.dtype, "sub", (value, head)))
            term = add(Apply(fresh(), instr.dtype, "mul", (away, away)))
        rename[instr.id] = add(Reduce(fresh(), instr.dtype, "sum", "", term))
    reduced = frozenset(axis.name for axis in kernel.reduced)
    return replace(kernel, stages=place(instrs, reduced))


def _topological(kernel: Kernel) -> list[Instr]:
    return list(kernel.instructions())


def _renamed(instr: Instr, rename: dict[int, int]) -> Instr:
    if not any(read in rename for read in operands(instr)):
        return instr
    names = {f"v{old}": Index.of(f"v{new}") for old, new in rename.items()}
    match instr:
        case Apply(args=args):
            return replace(instr, args=tuple(rename.get(a, a) for a in args))
        case Store(value=value):
            index = instr.index.substitute(names, {})
            return replace(instr, value=rename.get(value, value), index=index)
        case Load(mask=mask):
            mask = None if mask is None else rename.get(mask, mask)
            return replace(instr, index=instr.index.substitute(names, {}), mask=mask)
        case IndexValue() | InRange():
            return replace(instr, index=instr.index.substitute(names, {}))
        case Rand(seed=seed):
            return replace(instr, seed=rename.get(seed, seed))
    if isinstance(instr, (Cast, Check, Reduce, Accumulate)):
        return replace(instr, arg=rename.get(instr.arg, instr.arg))
    return instr


def plan(kernel: Kernel, *, keeps_order: bool = False) -> CpuSchedule:
    """The schedule of an expanded kernel.

    Args:
        keeps_order: sums over a row add in the order of the kernel's axes.
    """
    varies = dependence(kernel)
    accumulates = any(
        isinstance(i, Accumulate) and kernel.reduced and _in_loop(kernel, i)
        for i in kernel.instructions()
    )
    candidates: list[Axis] = list(kernel.reduced)
    if keeps_order and sums_rows(kernel):
        # The vector axis runs innermost: another one would change the order.
        candidates = candidates[-1:]
    if not accumulates:
        candidates += list(kernel.parallel)
    vector = max(candidates, key=lambda axis: _score(kernel, axis), default=None)
    name = None if vector is None else vector.name
    outer = tuple(axis.name for axis in kernel.parallel if axis.name != name)
    rows = tuple(axis.name for axis in kernel.reduced if axis.name != name)
    if vector is not None and vector.kind == "reduced":
        rows = (*rows, vector.name)
    work = sum(_work(instr) for instr in kernel.instructions())
    chunk = 2048
    length = product([kernel.extents[row] for row in rows]).constant() or 64
    if vector is not None and vector.kind == "parallel":
        chunk = max(LANES, min(2048, 16384 // max(length, 1) // LANES * LANES))
    return CpuSchedule(name, outer, rows, _kept(kernel, varies, name), chunk, work)


def sums_rows(kernel: Kernel) -> bool:
    """Whether a row is reduced to what depends on the order of its elements."""
    return any(
        isinstance(i, Reduce) and depends_on_order(i.kind, i.dtype) for i in kernel.instructions()
    )


def _in_loop(kernel: Kernel, accumulate: Accumulate) -> bool:
    return any(accumulate in stage.body and stage.kind == "loop" for stage in kernel.stages)


def _score(kernel: Kernel, axis: Axis) -> tuple[float, int]:
    """How well memory is walked along this axis by vectors; what runs in loops counts more."""
    total = 0.0
    for stage in kernel.stages:
        weight = 8.0 if stage.kind in ("loop", "columns") else 1.0
        for instr in stage.body:
            if not isinstance(instr, (Load, Store)) or axis.name not in instr.index.names():
                continue
            stride = instr.index.coefficient(axis.name)
            if stride == ONE:
                total += 2 * weight
            elif stride != Index.of(-1):
                total -= 2 * weight
    extent = axis.extent.constant()
    if extent is not None and extent < LANES:
        total -= 16 if extent < LANES // 2 else 8
    order = [a.name for a in kernel.axes].index(axis.name)
    return total + (0.5 if axis.kind == "reduced" else 0.0), order


def _work(instr: Instr) -> float:
    if isinstance(instr, Apply):
        return OPS[instr.op].cost
    if isinstance(instr, (Load, Store)):
        return 1.0
    if isinstance(instr, Rand):
        return 20.0
    return 0.5


def _kept(kernel: Kernel, varies: dict[int, frozenset[str]], vector: str | None) -> frozenset[int]:
    """Loop values to keep in a row buffer, because computing them again costs more."""
    reduced = {axis.name for axis in kernel.reduced}
    length = product([axis.extent for axis in kernel.reduced]).constant()
    if length is None or length * (1 if vector in reduced else LANES) > KEEP_ELEMENTS:
        return frozenset()
    home: dict[int, int] = {}
    definition: dict[int, Valued] = {}
    for number, stage in enumerate(kernel.stages):
        for instr in stage.body:
            if not isinstance(instr, Store):
                home[instr.id] = number
                definition[instr.id] = instr
    kept: set[int] = set()
    for number, stage in enumerate(kernel.stages):
        if stage.kind != "loop":
            continue
        stack = [read for instr in stage.body for read in operands(instr)]
        seen: set[int] = set()
        while stack:
            value = stack.pop()
            if value in seen or value in kept:
                continue
            seen.add(value)
            instr = definition[value]
            if home[value] >= number or kernel.stages[home[value]].kind != "loop":
                continue
            if isinstance(instr, (Reduce, Accumulate)) or not varies[value] & reduced:
                continue
            if _work(instr) >= _HEAVY or (isinstance(instr, Load) and index_values(instr.index)):
                kept.add(value)
                continue
            stack.extend(operands(instr))
    return frozenset(kept)
