"""`verify_kernel`: the rules that a kernel must keep, checked one instruction at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ..errors import DeepCompileError, unknown_name
from .index import Index
from .monoids import MONOIDS
from .nest import (
    Accumulate,
    Apply,
    Buffer,
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
    Stage,
    StageKind,
    Store,
    index_values,
    operands,
)
from .nest_text import print_instruction
from .ops import OPERAND_DTYPES, OPS, REGISTER_DTYPES, REGISTER_OF

INDEX_DTYPE = "i64"
NEIGHBOURS = 3
PARTS: dict[str, tuple[str, ...]] = dict.fromkeys(MONOIDS, ("",)) | {
    "welford": ("mean", "m2"),
    "lse": ("max", "sum"),
    "argmax": ("value", "index"),
    "argmin": ("value", "index"),
}
"""The parts a `Reduce` may ask of a monoid, in the order of its state."""
_VALUE = re.compile(r"v\d+")
_RESULTS = {"bool": "b1", "int64": "i64", "float32": "f32"}
_VISIBLE_AFTER: dict[StageKind, frozenset[StageKind]] = {
    "row": frozenset({"row", "loop"}),
    "loop": frozenset({"loop"}),
    "columns": frozenset(),
    "total": frozenset({"columns"}),
}


class KernelError(DeepCompileError):
    """A kernel breaks a rule of the IR; the message shows the instruction and its neighbours."""

    def __init__(self, kernel: str, detail: str, shown: Iterable[str] = ()) -> None:
        super().__init__("\n".join([f"kernel @{kernel}: {detail}", *shown]))
        self.kernel = kernel
        self.detail = detail


def verify_kernel(kernel: Kernel) -> None:
    """Check every rule of the kernel IR; the docstring of `nest` says what they mean.

    Raises:
        KernelError: on the first rule that is broken.
    """
    _Verifier(kernel).run()


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.stage = 0
        self.position = 0
        self.dtypes: dict[int, str] = {}
        self.origin: dict[int, int] = {}  # value -> number of its stage
        self.producer: dict[int, Instr] = {}
        self.stored: dict[str, Index] = {}
        self.loaded: dict[str, Index] = {}

    def run(self) -> None:
        self.declarations()
        self.stage_order()
        for number, stage in enumerate(self.kernel.stages):
            self.stage = number
            for position, instr in enumerate(stage.body):
                self.position = position
                self.instruction(instr, stage)
        for buffer in self.kernel.buffers:
            if buffer.role == "out" and buffer.name not in self.stored:
                raise KernelError(self.kernel.name, f"out buffer {buffer.name} is never stored")

    def fail(self, detail: str) -> KernelError:
        """The error at the current instruction."""
        stage = self.kernel.stages[self.stage]
        first = max(self.position - NEIGHBOURS, 0)
        shown = [f"  {stage.kind}: (stage {self.stage})"]
        if first:
            shown.append("      ...")
        for at, instr in enumerate(stage.body[first : self.position + NEIGHBOURS + 1], first):
            shown.append(
                f"{'  --> ' if at == self.position else '      '}{print_instruction(instr)}"
            )
        if self.position + NEIGHBOURS + 1 < len(stage.body):
            shown.append("      ...")
        return KernelError(self.kernel.name, detail, shown)

    def declarations(self) -> None:
        kernel = self.kernel
        names = [*kernel.sizes, *(axis.name for axis in kernel.axes)]
        for kind, declared in (("name", names), ("buffer", [b.name for b in kernel.buffers])):
            for name, count in Counter(declared).items():
                if count > 1:
                    raise KernelError(kernel.name, f"{kind} {name} is declared twice")
        for name in names:
            if _VALUE.fullmatch(name):
                raise KernelError(kernel.name, f"{name} names a value, so no axis or size")
        extents = [(f"the extent of {axis.name}", axis.extent) for axis in kernel.axes]
        shapes = [(f"the shape of {b.name}", size) for b in kernel.buffers for size in b.shape]
        for what, size in extents + shapes:
            for name in sorted(size.names() - set(kernel.sizes)):
                raise KernelError(kernel.name, f"{what} uses {name}, which is not in `sizes`")
        for buffer in kernel.buffers:
            if buffer.dtype not in REGISTER_OF:
                detail = unknown_name("dtype", buffer.dtype, REGISTER_OF)
                raise KernelError(kernel.name, f"{detail} of buffer {buffer.name}")

    def stage_order(self) -> None:
        kinds = [stage.kind for stage in self.kernel.stages]
        finished = [kind in ("columns", "total") for kind in kinds]
        if finished != sorted(finished):
            detail = f"stages are {', '.join(kinds)}; rows and loops come before columns and total"
            raise KernelError(self.kernel.name, detail)
        for kind in ("columns", "total"):
            if kinds.count(kind) > 1:
                raise KernelError(self.kernel.name, f"more than one {kind} stage")

    def instruction(self, instr: Instr, stage: Stage) -> None:
        for value in operands(instr):
            self.visible(value, stage)
        match instr:
            case Store():
                self.store(instr, stage)
                return
            case Const(dtype=dtype, value=literal):
                self.constant(dtype, literal)
            case IndexValue(dtype=dtype, index=index):
                self.index(index, stage)
                self.result(dtype, INDEX_DTYPE)
            case InRange(dtype=dtype):
                for index in (instr.index, instr.low, instr.high):
                    self.index(index, stage)
                self.result(dtype, "b1")
            case Load():
                self.load(instr, stage)
            case Apply():
                self.apply(instr)
            case Cast(dtype=dtype, to=to):
                self.result(dtype, self.register(to))
            case Check(dtype=dtype, arg=arg):
                self.operand(arg, "b1", "checked value")
                self.result(dtype, "b1")
            case Rand():
                self.rand(instr, stage)
            case Reduce() | Accumulate():
                self.reduction(instr, stage)
        if instr.id in self.dtypes:
            raise self.fail(f"v{instr.id} is defined twice")
        self.dtypes[instr.id] = instr.dtype
        self.origin[instr.id] = self.stage
        self.producer[instr.id] = instr

    def visible(self, value: int, stage: Stage) -> None:
        if value not in self.dtypes:
            raise self.fail(f"v{value} is not defined before its use")
        producer, origin = self.producer[value], self.origin[value]
        source = self.kernel.stages[origin].kind
        if isinstance(producer, Accumulate):
            after = ("columns",) if self.per_position(producer.arg) else ("columns", "total")
            if stage.kind not in after:
                where = " and ".join(after)
                raise self.fail(f"v{value} accumulates over all points: visible in {where} only")
        elif isinstance(producer, Reduce):
            if origin == self.stage:
                raise self.fail(f"v{value} is reduced by this loop: visible in later stages only")
            if stage.kind not in ("row", "loop"):
                raise self.fail(f"v{value} belongs to a point: not visible in {stage.kind}")
        elif origin != self.stage and stage.kind not in _VISIBLE_AFTER[source]:
            raise self.fail(f"v{value} of a {source} stage is not visible in {stage.kind}")

    def per_position(self, value: int) -> bool:
        """Whether a value of a point belongs to a position of the reduced axes (a loop value)."""
        loop = self.kernel.stages[self.origin[value]].kind == "loop"
        return loop and not isinstance(self.producer[value], Reduce)

    def axes(self, kind: StageKind) -> list[str]:
        shown = {"row": ("parallel",), "loop": ("parallel", "reduced"), "columns": ("reduced",)}
        return [axis.name for axis in self.kernel.axes if axis.kind in shown.get(kind, ())]

    def index(self, index: Index, stage: Stage) -> None:
        names = index.names()
        values = index_values(index)
        known = {*self.kernel.sizes, *self.axes(stage.kind), *(f"v{value}" for value in values)}
        for name in sorted(names - known):
            if name in self.kernel.extents:
                raise self.fail(f"axis {name} does not run in a {stage.kind} stage")
            raise self.fail(f"index uses {name}, which is no axis, size or value")
        for value in values:
            if self.dtypes[value] != INDEX_DTYPE:
                raise self.fail(
                    f"index uses v{value}: {self.dtypes[value]}, expected {INDEX_DTYPE}"
                )

    def result(self, dtype: str, expected: str) -> None:
        if dtype != expected:
            raise self.fail(f"the result is {expected}, not {dtype}")

    def operand(self, value: int, expected: str, what: str) -> None:
        if self.dtypes[value] != expected:
            raise self.fail(f"{what} v{value} is {self.dtypes[value]}, expected {expected}")

    def register(self, storage: str) -> str:
        if storage not in REGISTER_OF:
            raise self.fail(unknown_name("dtype", storage, REGISTER_OF))
        return REGISTER_OF[storage]

    def constant(self, dtype: str, value: float | int | bool) -> None:
        if dtype not in REGISTER_DTYPES:
            raise self.fail(unknown_name("register dtype", dtype, REGISTER_DTYPES))
        boolean = isinstance(value, bool)
        fits = {
            "b1": boolean,
            "i32": isinstance(value, int) and not boolean and -(2**31) <= value < 2**31,
            "i64": isinstance(value, int) and not boolean and -(2**63) <= value < 2**63,
        }
        if not fits.get(dtype, not boolean):
            raise self.fail(f"{value!r} is no {dtype}")

    def buffer(self, name: str) -> Buffer:
        names = [buffer.name for buffer in self.kernel.buffers]
        if name not in names:
            raise self.fail(unknown_name("buffer", name, names))
        return self.kernel.buffer(name)

    def load(self, instr: Load, stage: Stage) -> None:
        buffer = self.buffer(instr.buffer)
        self.index(instr.index, stage)
        self.result(instr.dtype, REGISTER_OF[buffer.dtype])
        if instr.mask is not None:
            self.operand(instr.mask, "b1", "mask")
        if buffer.role == "out":
            raise self.fail(f"load from the out buffer {buffer.name}")
        if buffer.role == "inout":
            if buffer.name in self.stored:
                raise self.fail(f"load from the inout buffer {buffer.name} after its store")
            if self.loaded.setdefault(buffer.name, instr.index) != instr.index:
                raise self.fail(f"the inout buffer {buffer.name} is loaded at two indices")

    def store(self, instr: Store, stage: Stage) -> None:
        buffer = self.buffer(instr.buffer)
        self.index(instr.index, stage)
        self.operand(instr.value, REGISTER_OF[buffer.dtype], "stored value")
        if buffer.role == "in":
            raise self.fail(f"store to the in buffer {buffer.name}")
        loaded = self.loaded.get(buffer.name, instr.index)
        if loaded != instr.index:
            raise self.fail(f"the inout buffer {buffer.name} is loaded at [{loaded}]")
        if not index_values(instr.index):
            for name in self.axes(stage.kind):
                alone = self.kernel.extents[name] == 1
                if not alone and name not in instr.index.names():
                    raise self.fail(f"every position of {name} stores to the same element")
        self.stored[buffer.name] = instr.index

    def apply(self, instr: Apply) -> None:
        op = OPS.get(instr.op)
        if op is None:
            raise self.fail(unknown_name("op", instr.op, OPS))
        if len(instr.args) != op.arity:
            raise self.fail(f"{op.name} takes {op.arity} arguments, not {len(instr.args)}")
        args = instr.args
        if op.name == "where":
            self.operand(args[0], "b1", "condition")
            args = args[1:]
        common = self.dtypes[args[0]]
        if common not in OPERAND_DTYPES[op.operands]:
            raise self.fail(f"{op.name} takes {op.operands} operands, not {common}")
        for arg in args:
            self.operand(arg, common, "operand")
        self.result(instr.dtype, _RESULTS.get(op.result, common))

    def rand(self, instr: Rand, stage: Stage) -> None:
        if instr.kind not in ("uniform", "normal"):
            raise self.fail(
                unknown_name("kind of random number", instr.kind, ("uniform", "normal"))
            )
        self.index(instr.offset, stage)
        self.operand(instr.seed, "i64", "seed")
        self.result(instr.dtype, "f32")

    def reduction(self, instr: Reduce | Accumulate, stage: Stage) -> None:
        monoid = MONOIDS.get(instr.kind)
        if monoid is None:
            raise self.fail(unknown_name("reduction", instr.kind, MONOIDS))
        part = ""
        if isinstance(instr, Reduce):
            part = instr.part
            if stage.kind != "loop":
                raise self.fail(f"reduce in a {stage.kind} stage; it runs in a loop")
            if part not in PARTS[instr.kind]:
                raise self.fail(f"{instr.kind} has no part {part!r}, but {PARTS[instr.kind]}")
        else:
            if stage.kind not in ("row", "loop"):
                raise self.fail(f"accumulate in a {stage.kind} stage; it runs in a row or a loop")
            if PARTS[instr.kind] != ("",):
                raise self.fail(f"cannot accumulate {instr.kind}, whose state is not one value")
        dtype = self.dtypes[instr.arg]
        if dtype not in monoid.identity:
            raise self.fail(f"{instr.kind} takes {', '.join(monoid.identity)}, not {dtype}")
        self.result(instr.dtype, INDEX_DTYPE if part == "index" else dtype)
