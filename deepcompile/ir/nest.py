"""The kernel IR: a *nest* is a set of loops over axes around ordered stages of scalar
instructions.

    kernel @rms_norm(in x: f32[2048, 1024], in w: f32[1024], out y: f32[2048, 1024]) {
      axes p0: parallel 2048, r0: reduced 1024
      loop:
        v0: f32 = load x[1024*p0 + r0]
        v1: f32 = mul v0 v0
        v2: f32 = reduce sum v1
      row:
        v3: f32 = const 0.0009765625
        ...
      loop:
        ...
        store y[1024*p0 + r0] v9
    }

A *point* is one position of the parallel axes. The stages of a kernel run in order at every
point: `row` once, `loop` at every position of the reduced axes. Then, when all points are done,
`total` runs once and `columns` at every position of the reduced axes, each at most once, in the
order written. A value is visible in later instructions of its own stage (the result of a
`reduce` is not) and, after it:

- a `row` value, and the result of a `reduce`, in every later stage of the same point;
- a `loop` value in later loops of the same point, at the same position (an emitter recomputes it
  or keeps it);
- the result of an `accumulate` (over all points) in `columns` and, when its argument is a row
  value or the result of a `reduce`, in `total`;
- a `total` value in `columns` after it.

The IR says what is computed, not how: vectors, threads, blocks and masks belong to the schedule.
Register dtypes are f32, f64, i32, i64 and b1; loads widen and stores narrow (`ops.REGISTER_OF`).
`Cast` to a narrower storage dtype rounds and stays in the register."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .index import Index

AxisKind = Literal["parallel", "reduced"]
Role = Literal["in", "out", "inout"]
StageKind = Literal["row", "loop", "columns", "total"]


@dataclass(frozen=True)
class Axis:
    """A loop. Extents are sizes: integers or polynomials in size symbols."""

    name: str
    extent: Index
    kind: AxisKind


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory; indices count elements from its first one."""

    name: str
    dtype: str
    shape: tuple[Index, ...]
    role: Role


@dataclass(frozen=True)
class Const:
    """A literal. `value` is a float, int or bool fitting `dtype` (a register dtype)."""

    id: int
    dtype: str
    value: float | int | bool


@dataclass(frozen=True)
class IndexValue:
    """The value of an index expression (over axes and sizes) as i64."""

    id: int
    dtype: str
    index: Index


@dataclass(frozen=True)
class InRange:
    """b1: `low <= index < high`."""

    id: int
    dtype: str
    index: Index
    low: Index
    high: Index


@dataclass(frozen=True)
class Load:
    """`buffer[index]`, or 0 and no access where `mask` (a b1 value) is false.

    Names `vN` in `index` are i64 values: a gather.
    """

    id: int
    dtype: str
    buffer: str
    index: Index
    mask: int | None = None


@dataclass(frozen=True)
class Apply:
    """A scalar op of the op table on values of one register dtype."""

    id: int
    dtype: str
    op: str
    args: tuple[int, ...]


@dataclass(frozen=True)
class Cast:
    """Conversion to storage dtype `to`; the value stays in the register dtype of `to`."""

    id: int
    dtype: str
    arg: int
    to: str


@dataclass(frozen=True)
class Check:
    """b1: `arg` itself; where it is false the user's index is out of range, and the call fails.

    A load under a checked mask stays inside its buffer even then.
    """

    id: int
    dtype: str
    arg: int


@dataclass(frozen=True)
class Rand:
    """Philox of (`seed`: an i64 row or uniform value, linear element number `offset`).

    `kind` is "uniform" (f32 in [0, 1)) or "normal".
    """

    id: int
    dtype: str
    kind: str
    seed: int
    offset: Index


@dataclass(frozen=True)
class Reduce:
    """Over the reduced axes, at one point. `kind` names a monoid; `part` picks one of its results.

    Parts: welford "mean" | "m2"; lse "max" | "sum"; argmax and argmin "index" | "value"; else "".
    For argmax and argmin the index is the linear position over the reduced axes.
    """

    id: int
    dtype: str
    kind: str
    part: str
    arg: int


@dataclass(frozen=True)
class Accumulate:
    """Over all points: for a loop value at each position of the row, for a row value one scalar."""

    id: int
    dtype: str
    kind: str
    arg: int


@dataclass(frozen=True)
class Store:
    """`buffer[index] = value`, narrowed to the buffer's dtype."""

    buffer: str
    index: Index
    value: int


Valued = Const | IndexValue | InRange | Load | Apply | Cast | Check | Rand | Reduce | Accumulate
Instr = Valued | Store


@dataclass(frozen=True)
class Stage:
    """Instructions that run together; see the module docstring for the kinds."""

    kind: StageKind
    body: tuple[Instr, ...]


@dataclass(frozen=True)
class Kernel:
    """One kernel. `sizes` are the size symbols used, passed as arguments in this order."""

    name: str
    axes: tuple[Axis, ...]
    buffers: tuple[Buffer, ...]
    sizes: tuple[str, ...]
    stages: tuple[Stage, ...]
    _by_name: dict[str, Buffer] = field(
        init=False, repr=False, compare=False, hash=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._by_name.update({buffer.name: buffer for buffer in self.buffers})

    def buffer(self, name: str) -> Buffer:
        """The buffer called `name`."""
        return self._by_name[name]

    @property
    def extents(self) -> dict[str, Index]:
        """Axis name -> extent."""
        return {axis.name: axis.extent for axis in self.axes}

    @property
    def parallel(self) -> tuple[Axis, ...]:
        """The parallel axes, outermost first."""
        return tuple(axis for axis in self.axes if axis.kind == "parallel")

    @property
    def reduced(self) -> tuple[Axis, ...]:
        """The reduced axes, outermost first."""
        return tuple(axis for axis in self.axes if axis.kind == "reduced")

    def instructions(self) -> Iterator[Instr]:
        """Every instruction in program order."""
        for stage in self.stages:
            yield from stage.body


def operands(instr: Instr) -> tuple[int, ...]:
    """The ids of the values an instruction reads, those in its index included."""
    match instr:
        case Apply(args=args):
            return args
        case Cast(arg=arg) | Check(arg=arg) | Reduce(arg=arg) | Accumulate(arg=arg):
            return (arg,)
        case Load(index=index, mask=mask):
            return index_values(index) + (() if mask is None else (mask,))
        case Store(index=index, value=value):
            return (*index_values(index), value)
        case IndexValue(index=index) | InRange(index=index):
            return index_values(index)
        case Rand(seed=seed, offset=offset):
            return (seed, *index_values(offset))
    return ()


def index_values(index: Index) -> tuple[int, ...]:
    """The value ids (`vN`) an index expression reads, ascending."""
    found = [name for name in index.names() if name[0] == "v" and name[1:].isdigit()]
    return tuple(sorted(int(name[1:]) for name in found))
