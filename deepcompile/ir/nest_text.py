"""Kernels as text: `print_kernel` and `parse_kernel`, an exact round trip.

The form is that of `nest`'s docstring, one instruction a line:

    kernel @name(in seed: i64[1], in x: f32[s0, 1024], out y: bf16[s0, 1024]) {
      sizes s0
      axes p0: parallel s0, r0: reduced 1024
      row:
        v0: i64 = load seed[0]
        v1: f32 = const 0.5
      loop:
        v2: i64 = index 1024*p0 + r0
        v3: b1 = in_range 0 <= r0 - 2 < 1020
        v4: f32 = load x[1024*p0 + r0 - 2] if v3
        v5: f32 = mul v4 v1
        v6: f32 = cast v5 to bf16
        v7: f32 = rand uniform v0 at 1024*p0 + r0
        v8: f32 = reduce welford.mean v6
        v9: f32 = accumulate sum v6
        store y[1024*p0 + r0] v6
    }

`sizes` and `axes` are left out when there are none. A constant prints as Python writes it, except
`true` and `false`. A header too long for one line has one buffer a line. The parser skips blank
lines and what follows a `#`; it checks the form only, `verify_kernel` checks the meaning.
"""

from __future__ import annotations

import math
import re
from typing import cast, get_args

from ..errors import IRSyntaxError
from .index import Index, parse_index
from .nest import (
    Accumulate,
    Apply,
    Axis,
    AxisKind,
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
    Role,
    Stage,
    StageKind,
    Store,
)

WIDTH = 100
_WORDS = (
    "const",
    "index",
    "in_range",
    "load",
    "cast",
    "check",
    "rand",
    "reduce",
    "accumulate",
    "store",
)


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel, without a newline at the end."""
    buffers = [_print_buffer(buffer) for buffer in kernel.buffers]
    header = f"kernel @{kernel.name}({', '.join(buffers)}) {{"
    lines = [header]
    if len(header) > WIDTH:
        lines = [f"kernel @{kernel.name}("]
        lines += [f"  {buffer}," for buffer in buffers[:-1]]
        lines += [f"  {buffers[-1]}", ") {"]
    if kernel.sizes:
        lines.append(f"  sizes {', '.join(kernel.sizes)}")
    if kernel.axes:
        axes = [f"{axis.name}: {axis.kind} {axis.extent}" for axis in kernel.axes]
        lines.append(f"  axes {', '.join(axes)}")
    for stage in kernel.stages:
        lines.append(f"  {stage.kind}:")
        lines += [f"    {print_instruction(instr)}" for instr in stage.body]
    lines.append("}")
    return "\n".join(lines)


def _print_buffer(buffer: Buffer) -> str:
    shape = ", ".join(map(str, buffer.shape))
    return f"{buffer.role} {buffer.name}: {buffer.dtype}[{shape}]"


def print_instruction(instr: Instr) -> str:
    """The line of one instruction."""
    if isinstance(instr, Store):
        return f"store {instr.buffer}[{instr.index}] v{instr.value}"
    return f"v{instr.id}: {instr.dtype} = {_print_right(instr)}"


def _print_right(instr: Instr) -> str:
    match instr:
        case Const(value=value):
            return f"const {_print_literal(value)}"
        case IndexValue(index=index):
            return f"index {index}"
        case InRange(index=index, low=low, high=high):
            return f"in_range {low} <= {index} < {high}"
        case Load(buffer=buffer, index=index, mask=mask):
            return f"load {buffer}[{index}]" + ("" if mask is None else f" if v{mask}")
        case Apply(op=op, args=args):
            return " ".join([op, *(f"v{arg}" for arg in args)])
        case Cast(arg=arg, to=to):
            return f"cast v{arg} to {to}"
        case Check(arg=arg):
            return f"check v{arg}"
        case Rand(kind=kind, seed=seed, offset=offset):
            return f"rand {kind} v{seed} at {offset}"
        case Reduce(kind=kind, part=part, arg=arg):
            return f"reduce {kind}{'.' + part if part else ''} v{arg}"
        case Accumulate(kind=kind, arg=arg):
            return f"accumulate {kind} v{arg}"
    raise TypeError(f"not an instruction: {instr!r}")


def _print_literal(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


_HEADER = re.compile(r"kernel @(\w+)\((.*)\)\s*\{")
_BUFFER = re.compile(r"(in|out|inout) ([A-Za-z_]\w*): (\w+)\[(.*)\]")
_AXIS = re.compile(r"([A-Za-z_]\w*): (\w+) (.+)")
_VALUED = re.compile(r"v(\d+): (\w+) = (\w+)(?: (.*))?")
_STORE = re.compile(r"store (\w+)\[(.*)\] v(\d+)")
_LOAD = re.compile(r"(\w+)\[(.*)\](?: if v(\d+))?")
_IN_RANGE = re.compile(r"(.+) <= (.+) < (.+)")
_CAST = re.compile(r"v(\d+) to (\w+)")
_CHECK = re.compile(r"v(\d+)")
_RAND = re.compile(r"(\w+) v(\d+) at (.+)")
_REDUCE = re.compile(r"(\w+)(?:\.(\w+))? v(\d+)")
_ACCUMULATE = re.compile(r"(\w+) v(\d+)")
_ARGS = re.compile(r"v\d+(?: v\d+)*")
_INT = re.compile(r"-?\d+")


def parse_kernel(text: str) -> Kernel:
    """The kernel that prints as `text`.

    Raises:
        IRSyntaxError: when the text is no kernel; it names the line.
    """
    return _Parser(text).kernel()


class _Parser:
    def __init__(self, text: str) -> None:
        stripped = [line.split("#", 1)[0].strip() for line in text.splitlines()]
        self.lines = [(number, line) for number, line in enumerate(stripped, 1) if line]
        self.position = 0
        self.last = len(stripped) or 1

    def error(self, detail: str) -> IRSyntaxError:
        if self.position < len(self.lines):
            number, line = self.lines[self.position]
            return IRSyntaxError(detail, number, line)
        return IRSyntaxError(f"{detail}, but the text ends", self.last)

    def peek(self) -> str:
        return self.lines[self.position][1] if self.position < len(self.lines) else ""

    def kernel(self) -> Kernel:
        name, buffers = self.header()
        sizes: tuple[str, ...] = ()
        axes: tuple[Axis, ...] = ()
        if self.peek().startswith("sizes "):
            sizes = tuple(part.strip() for part in self.peek()[6:].split(","))
            if not all(size.isidentifier() for size in sizes):
                raise self.error("expected names after `sizes`")
            self.position += 1
        if self.peek().startswith("axes "):
            axes = tuple(self.axis(part) for part in _split_commas(self.peek()[5:]))
            self.position += 1
        stages = self.stages()
        self.position += 1
        if self.position < len(self.lines):
            raise self.error("expected nothing after the kernel's `}`")
        return Kernel(name, axes, buffers, sizes, stages)

    def header(self) -> tuple[str, tuple[Buffer, ...]]:
        start, joined = self.position, ""
        while self.peek() and not joined.endswith("{"):
            joined = f"{joined} {self.peek()}".strip()
            self.position += 1
        end = self.position
        self.position = start
        match = _HEADER.fullmatch(joined)
        if match is None:
            raise self.error("expected `kernel @name(buffers) {`")
        buffers = tuple(self.buffer(part) for part in _split_commas(match[2]))
        self.position = end
        return match[1], buffers

    def buffer(self, text: str) -> Buffer:
        match = _BUFFER.fullmatch(text)
        if match is None:
            raise self.error(f"expected a buffer such as `in x: f32[8, 4]`, not `{text}`")
        role, name, dtype, shape = match.groups()
        sizes = tuple(self.index(part) for part in _split_commas(shape))
        return Buffer(name, dtype, sizes, cast(Role, role))

    def axis(self, text: str) -> Axis:
        match = _AXIS.fullmatch(text)
        if match is None or match[2] not in get_args(AxisKind):
            raise self.error(f"expected an axis such as `p0: parallel 8`, not `{text}`")
        return Axis(match[1], self.index(match[3]), cast(AxisKind, match[2]))

    def stages(self) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        while (line := self.peek()) != "}":
            kind = line.removesuffix(":")
            if not line.endswith(":") or kind not in get_args(StageKind):
                raise self.error("expected a stage (`row:`, `loop:`, `columns:`, `total:`) or `}`")
            self.position += 1
            body: list[Instr] = []
            while self.peek() and self.peek() != "}" and not self.peek().endswith(":"):
                body.append(self.instruction(self.peek()))
                self.position += 1
            stages.append(Stage(cast(StageKind, kind), tuple(body)))
        return tuple(stages)

    def instruction(self, line: str) -> Instr:
        if match := _STORE.fullmatch(line):
            return Store(match[1], self.index(match[2]), int(match[3]))
        match = _VALUED.fullmatch(line)
        if match is None:
            raise self.error("expected an instruction")
        instr = self.valued(int(match[1]), match[2], match[3], match[4] or "")
        if instr is None:
            raise self.error(f"`{match[3]}` has the wrong form")
        return instr

    def valued(self, id: int, dtype: str, word: str, rest: str) -> Instr | None:
        match word:
            case "const":
                return Const(id, dtype, self.literal(rest))
            case "index":
                return IndexValue(id, dtype, self.index(rest))
            case "in_range" if found := _IN_RANGE.fullmatch(rest):
                low, index, high = (self.index(part) for part in found.groups())
                return InRange(id, dtype, index, low, high)
            case "load" if found := _LOAD.fullmatch(rest):
                mask = None if found[3] is None else int(found[3])
                return Load(id, dtype, found[1], self.index(found[2]), mask)
            case "cast" if found := _CAST.fullmatch(rest):
                return Cast(id, dtype, int(found[1]), found[2])
            case "check" if found := _CHECK.fullmatch(rest):
                return Check(id, dtype, int(found[1]))
            case "rand" if found := _RAND.fullmatch(rest):
                return Rand(id, dtype, found[1], int(found[2]), self.index(found[3]))
            case "reduce" if found := _REDUCE.fullmatch(rest):
                return Reduce(id, dtype, found[1], found[2] or "", int(found[3]))
            case "accumulate" if found := _ACCUMULATE.fullmatch(rest):
                return Accumulate(id, dtype, found[1], int(found[2]))
        if word in _WORDS or (rest and not _ARGS.fullmatch(rest)):
            return None
        return Apply(id, dtype, word, tuple(int(arg[1:]) for arg in rest.split()))

    def index(self, text: str) -> Index:
        try:
            return parse_index(text)
        except ValueError as error:
            raise self.error(str(error)) from error

    def literal(self, text: str) -> float | int | bool:
        if text in ("true", "false"):
            return text == "true"
        if _INT.fullmatch(text):
            return int(text)
        try:
            value = float(text)
        except ValueError as error:
            raise self.error(f"not a constant: `{text}`") from error
        return math.nan if math.isnan(value) else value


def _split_commas(text: str) -> list[str]:
    """The parts between the commas outside of brackets; none for blank text."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if parts or last else []
