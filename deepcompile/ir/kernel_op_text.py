"""Kernels that a graph calls, as part of its text: their nests, what they make, what they are of.

    kernel @k0(in x: f32[8, 4], out y: f32[8, 4]) {
      ...
    }
    kernel @k0 makes f32[8, 4] of "sin.default", "mul.Tensor" at "model.py:12"

A nest that differs from an earlier one of the graph by its name only prints as `kernel @k1 is @k0`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepcompile.ir.index import Index, parse_index
from deepcompile.ir.kernel_op import KernelOp, Origin, OutputSpec
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel, print_kernel

_IS = re.compile(r"kernel @(\w+) is @(\w+)")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_LIST = rf"{_QUOTED}(?:, {_QUOTED})*|nothing"
_MAKES = re.compile(rf"kernel @(\w+) makes ([^\"]*?) of ({_LIST})(?: at ({_LIST}))?")
_OUTPUT = re.compile(r"(\w+)\[([^\]]*)\](?:\{([^}]*)\})?")


def print_kernel_ops(ops: Iterable[KernelOp]) -> list[str]:
    """The lines that `KernelReader` reads back. Raises ValueError for two kernels of one name."""
    lines: list[str] = []
    names: set[str] = set()
    printed: dict[str, str] = {}
    for op in ops:
        name = op.nest.name
        if name in names:
            raise ValueError(f"two kernels of the graph are called {name}")
        names.add(name)
        text = print_kernel(op.nest)
        nest = text.partition("(")[2]
        if nest in printed:
            lines.append(f"kernel @{name} is @{printed[nest]}")
        else:
            printed[nest] = name
            lines += text.split("\n")
        made = ", ".join(map(_print_output, op.outputs)) or "nothing"
        line = f"kernel @{name} makes {made} of {_quoted(op.origin.ops)}"
        lines.append(line + (f" at {_quoted(op.origin.lines)}" if op.origin.lines else ""))
    return lines


def _print_output(spec: OutputSpec) -> str:
    text = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
    if spec.strides != _contiguous(spec.shape):
        text += "{" + ", ".join(map(str, spec.strides)) + "}"
    return text


def _contiguous(shape: Sequence[Index]) -> tuple[Index, ...]:
    strides = [Index.of(1)] if shape else []
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(json.dumps(text, ensure_ascii=False) for text in texts) or "nothing"


@dataclass(frozen=True)
class _Reference:
    """A kernel read from text: the ATen ops it was made of are not known, its meaning is."""

    nest: Kernel
    outputs: tuple[OutputSpec, ...]
    origin: Origin

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        return KernelOp(self.nest, self.outputs, self.origin, self)(*arguments)


class KernelReader:
    """Reads the statements about kernels of one graph; `ops` are those that are complete."""

    def __init__(self) -> None:
        self.ops: dict[str, KernelOp] = {}
        self._nests: dict[str, Kernel] = {}

    def nest(self, text: str) -> None:
        """A kernel in full, several lines."""
        kernel = parse_kernel(text)
        if kernel.name in self._nests:
            raise ValueError(f"kernel @{kernel.name} is defined twice")
        self._nests[kernel.name] = kernel

    def line(self, text: str) -> None:
        """`kernel @name is ...` or `kernel @name makes ...`. Raises ValueError."""
        if match := _IS.fullmatch(text):
            name, other = match.groups()
            if name in self._nests:
                raise ValueError(f"kernel @{name} is defined twice")
            self._nests[name] = replace(self._known(other), name=name)
            return
        match = _MAKES.fullmatch(text)
        if match is None:
            raise ValueError("expected 'kernel @name(...) {', '... is @name' or '... makes ...'")
        nest = self._known(match[1])
        outputs = tuple(_outputs(match[2]))
        wanted = [buffer.dtype for buffer in nest.buffers if buffer.role == "out"]
        if [spec.dtype for spec in outputs] != wanted:
            raise ValueError(f"kernel @{match[1]} makes {', '.join(wanted) or 'nothing'}")
        origin = Origin(_texts(match[3]), _texts(match[4] or "nothing"))
        self.ops[match[1]] = KernelOp(nest, outputs, origin, _Reference(nest, outputs, origin))

    def _known(self, name: str) -> Kernel:
        if name not in self._nests:
            raise ValueError(f"kernel @{name} is not defined before this line")
        return self._nests[name]


def _outputs(text: str) -> Iterable[OutputSpec]:
    if text == "nothing":
        return
    at = 0
    while at < len(text):
        match = _OUTPUT.match(text, at)
        if match is None:
            raise ValueError(f"{text[at:]!r} is not what a kernel makes")
        dtype, sizes, steps = match.groups()
        shape = _indices(sizes)
        strides = _contiguous(shape) if steps is None else _indices(steps)
        if len(strides) != len(shape):
            raise ValueError(f"{match[0]} has {len(shape)} sizes but {len(strides)} strides")
        yield OutputSpec(shape, strides, dtype)
        at = match.end()
        if at < len(text) and not text.startswith(", ", at):
            raise ValueError(f"expected ', ' before {text[at:]!r}")
        at += 2


def _indices(text: str) -> tuple[Index, ...]:
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return tuple(parse_index(part.strip()) for part in parts if part.strip())


def _texts(text: str) -> tuple[str, ...]:
    if text == "nothing":
        return ()
    found: list[str] = json.loads(f"[{text}]")
    return tuple(found)


def kernel_ops(targets: Iterable[Any]) -> Mapping[int, KernelOp]:
    """The kernels among the targets of calls, each once, in order, by identity."""
    return {id(target): target for target in targets if isinstance(target, KernelOp)}
