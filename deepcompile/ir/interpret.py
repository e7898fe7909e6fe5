"""The slow reference interpreter: what a kernel means, in torch tensor operations.

Every value is a tensor of one rank, the parallel axes then the reduced axes, with size 1 where the
value does not vary. One instruction at a time runs over the whole iteration space, which equals
running the stages point by point because a verified kernel never loads what another point stores.

As a reference it is more exact than an emitter must be: sums, products, Welford and logsumexp
accumulate in f64 and round once. An access outside of a buffer raises `IndexError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import references
from .index import Index
from .monoids import MONOIDS
from .nest import (
    Accumulate,
    Apply,
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
    Store,
    Valued,
)
from .nest_text import print_instruction
from .ops import OPS
from .verify import PARTS

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "b1": torch.bool,
}


def flat_storage(tensor: Tensor) -> Tensor:
    """The storage under `tensor` as a 1-D view, from the tensor's first element to its end."""
    first = tensor.storage_offset()
    elements = tensor.untyped_storage().nbytes() // tensor.element_size() - first
    return tensor.detach().as_strided((max(elements, 0),), (1,), first)


def interpret(kernel: Kernel, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    """Run a verified kernel, writing its `out` and `inout` buffers in place.

    `tensors` maps each buffer's name to a tensor, whose memory the kernel's indices address from
    the tensor's first element on (see `flat_storage`); `sizes` maps each size symbol to its value.

    Raises:
        IndexError: when an element outside of its buffer is addressed, or a check fails.
        TypeError: when a tensor's dtype is not its buffer's.
    """
    flat: dict[str, Tensor] = {}
    for buffer in kernel.buffers:
        tensor = tensors[buffer.name]
        if tensor.dtype != TORCH_DTYPES[buffer.dtype]:
            raise TypeError(f"{buffer.name} is {buffer.dtype}, but its tensor is {tensor.dtype}")
        flat[buffer.name] = flat_storage(tensor)
    device = next((tensor.device for tensor in flat.values()), torch.device("cpu"))
    with device:
        run = _Run(kernel, flat, sizes)
        for stage in kernel.stages:
            run.stage(stage)


class _Run:
    def __init__(self, kernel: Kernel, flat: dict[str, Tensor], sizes: Mapping[str, int]) -> None:
        self.flat = flat
        self.values: dict[int, Tensor] = {}
        self.varies: dict[int, bool] = {}  # whether a value belongs to the positions of a loop
        self.names: dict[str, int | Tensor] = {name: sizes[name] for name in kernel.sizes}
        axes = (*kernel.parallel, *kernel.reduced)
        extents = [int(axis.extent.evaluate(self.names)) for axis in axes]
        self.rank = len(axes)
        self.parallel = extents[: len(kernel.parallel)]
        self.reduced = extents[len(kernel.parallel) :]
        for position, axis in enumerate(axes):
            shape = [1] * self.rank
            shape[position] = extents[position]
            self.names[axis.name] = torch.arange(extents[position]).reshape(shape)
        self.domain: list[int] = []

    def stage(self, stage: Stage) -> None:
        points = self.parallel if stage.kind in ("row", "loop") else [1] * len(self.parallel)
        varies = stage.kind in ("loop", "columns")
        self.domain = points + (self.reduced if varies else [1] * len(self.reduced))
        for instr in stage.body:
            if isinstance(instr, Store):
                self.store(instr)
                continue
            value = self.valued(instr)
            self.values[instr.id] = value.to(TORCH_DTYPES[instr.dtype])
            self.varies[instr.id] = varies and not isinstance(instr, Reduce)
            self.names[f"v{instr.id}"] = self.values[instr.id]

    def valued(self, instr: Valued) -> Tensor:
        match instr:
            case Const(dtype=dtype, value=literal):
                return torch.full([1] * self.rank, literal, dtype=TORCH_DTYPES[dtype])
            case IndexValue(index=index):
                return self.index(index)
            case InRange(index=index, low=low, high=high):
                position = self.index(index)
                return (self.index(low) <= position) & (position < self.index(high))
            case Load():
                return self.load(instr)
            case Apply(op=op, args=args):
                return OPS[op].resolve_reference()(*(self.values[arg] for arg in args))
            case Cast(arg=arg, to=to):
                return self.values[arg].to(TORCH_DTYPES[to])
            case Check(arg=arg):
                if 0 not in self.domain and not bool(self.values[arg].all()):
                    raise IndexError(f"an index is out of range: {print_instruction(instr)}")
                return self.values[arg]
            case Rand(kind=kind, seed=seed, offset=offset):
                draw = references.uniform if kind == "uniform" else references.normal
                return draw(self.values[seed], self.index(offset))
            case Reduce(kind=kind, part=part, arg=arg):
                value = self.values[arg].expand(self.parallel + self.reduced)
                rows = value.reshape(*self.parallel, math.prod(self.reduced))
                result = _reduce(kind, part, rows)
                return result.reshape(self.parallel + [1] * len(self.reduced))
            case Accumulate(kind=kind, arg=arg):
                return self.accumulate(kind, self.values[arg], self.varies[arg])

    def accumulate(self, kind: str, value: Tensor, varies: bool) -> Tensor:
        """Reduce over all points, leaving the positions of the reduced axes when `varies`."""
        count = len(self.parallel)
        positions = self.reduced if varies else [1] * len(self.reduced)
        value = value.expand(self.parallel + positions)
        value = value.permute(*range(count, self.rank), *range(count))
        columns = value.reshape(*positions, math.prod(self.parallel))
        return _reduce(kind, "", columns).reshape([1] * count + positions)

    def index(self, index: Index) -> Tensor:
        """The index at every position where it varies; not evaluated over an empty space."""
        if 0 in self.domain:
            return torch.zeros(self.domain, dtype=torch.int64)
        value = index.evaluate(self.names)
        if isinstance(value, Tensor):
            return value
        return torch.full([1] * self.rank, value)

    def load(self, instr: Load) -> Tensor:
        source = self.flat[instr.buffer]
        position = self.index(instr.index)
        if instr.mask is None:
            self.check(instr, position, source)
            return source[position]
        position, mask = torch.broadcast_tensors(position, self.values[instr.mask])
        mask = mask.expand(torch.broadcast_shapes(mask.shape, position.shape))
        reached = position[mask]
        self.check(instr, reached, source)
        value = torch.zeros(position.shape, dtype=source.dtype)
        value[mask] = source[reached]
        return value

    def store(self, instr: Store) -> None:
        target = self.flat[instr.buffer]
        position = self.index(instr.index).expand(self.domain).reshape(-1)
        value = self.values[instr.value].expand(self.domain).reshape(-1)
        self.check(instr, position, target)
        target[position] = value.to(target.dtype)

    def check(self, instr: Instr, position: Tensor, buffer: Tensor) -> None:
        if position.numel() == 0:
            return
        low, high = int(position.min()), int(position.max())
        if low < 0 or high >= buffer.numel():
            reached = low if low < 0 else high
            raise IndexError(
                f"element {reached} of a buffer of {buffer.numel()}: {print_instruction(instr)}"
            )


def _reduce(kind: str, part: str, rows: Tensor) -> Tensor:
    """Reduce the last dimension of `rows`; an empty one gives the identity of the op table."""
    if rows.shape[-1]:
        return _REDUCTIONS[kind, part](rows)
    register = next(name for name, dtype in TORCH_DTYPES.items() if dtype == rows.dtype)
    identity = MONOIDS[kind].identity[register][PARTS[kind].index(part)]
    return torch.full(
        rows.shape[:-1], identity, dtype=torch.int64 if part == "index" else rows.dtype
    )


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.float64 if rows.dtype.is_floating_point else torch.int64)


def _first(rows: Tensor, value: Tensor) -> Tensor:
    """The first position that holds `value`, or a NaN if `value` is one."""
    hit = rows == value.unsqueeze(-1)
    if rows.dtype.is_floating_point:
        hit = hit | rows.isnan()
    return hit.to(torch.int8).argmax(-1)


def _squares(rows: Tensor) -> Tensor:
    """The sum of squared distances from the mean."""
    return (_wide(rows) - _wide(rows).mean(-1, keepdim=True)).square().sum(-1)


def _exponentials(rows: Tensor) -> Tensor:
    """The sum of `exp(x - max)`, or of `exp(x)` where the maximum is infinite."""
    top = _wide(rows).amax(-1, keepdim=True)
    return (_wide(rows) - torch.where(top.isinf(), 0.0, top)).exp().sum(-1)


# Each takes [..., n] with n > 0 and reduces the last dimension.
_REDUCTIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("sum", ""): lambda rows: _wide(rows).sum(-1),
    ("prod", ""): lambda rows: _wide(rows).prod(-1),
    ("max", ""): lambda rows: rows.amax(-1),
    ("min", ""): lambda rows: rows.amin(-1),
    ("any", ""): lambda rows: rows.any(-1),
    ("all", ""): lambda rows: rows.all(-1),
    ("argmax", "value"): lambda rows: rows.amax(-1),
    ("argmax", "index"): lambda rows: _first(rows, rows.amax(-1)),
    ("argmin", "value"): lambda rows: rows.amin(-1),
    ("argmin", "index"): lambda rows: _first(rows, rows.amin(-1)),
    ("welford", "mean"): lambda rows: _wide(rows).mean(-1),
    ("welford", "m2"): _squares,
    ("lse", "max"): lambda rows: rows.amax(-1),
    ("lse", "sum"): _exponentials,
}
