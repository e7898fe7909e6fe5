"""Problems like those of a transformer's training step, at any depth and on any mesh; no torch.

Tensors are named dimensions (`"bsh"`), operations take some and make one. A dimension that an
operation has can be split over an axis of the mesh; one that only its operands have leaves partial
sums. Backward is derived: each operand's gradient is an operation on the output's gradient and the
other operands. On several axes the options are all combinations of those on one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deepcompile.passes.partition.problem import MemoryRow, Problem, Use, Value

WHOLE, PARTIAL = "R", "P"
Placement = tuple[str, ...]
"""By axis of the mesh: whole, partial sums, or the dimension that is split."""

SIZES = {"b": 2, "s": 4096, "h": 4096, "n": 32, "d": 128, "f": 14336, "v": 128256}
FLOPS, BYTES_A_SECOND, FLOOR = 4e14, 2e12, 3e-6
LINK, LATENCY = 2e11, 1e-5
BYTES = 2


@dataclass(frozen=True)
class Operation:
    """One group: operands and result as named dimensions, and which operands it is linear in."""

    name: str
    operands: tuple[int, ...]
    result: int
    linear: tuple[int, ...]
    splits: str
    flops: float
    backward: bool


@dataclass
class Program:
    """A training step as it is written down."""

    mesh: tuple[int, ...]
    dims: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    parameters: dict[int, int] = field(default_factory=dict)

    def tensor(self, dims: str) -> int:
        self.dims.append(dims)
        return len(self.dims) - 1

    def parameter(self, dims: str) -> int:
        made = self.tensor(dims)
        self.parameters[made] = -1
        return made

    def add(
        self,
        name: str,
        operands: Sequence[int],
        dims: str,
        *,
        linear: Sequence[int] = (),
        splits: str | None = None,
        flops: bool = False,
        backward: bool = False,
    ) -> int:
        """An operation of its own; its result."""
        every = "".join(dict.fromkeys("".join(self.dims[o] for o in operands) + dims))
        work = 2.0 * math.prod(SIZES[d] for d in every) if flops else 0.0
        result = self.tensor(dims)
        may = every if splits is None else splits
        self.operations.append(
            Operation(name, tuple(operands), result, tuple(linear), may, work, backward)
        )
        return result

    def differentiate(self, last: int) -> None:
        """Gradients of all operations so far, from that of `last`."""
        gradients = {last: self.add("ones", [], self.dims[last], backward=True)}
        for op in reversed(self.operations[:-1]):
            given = gradients.get(op.result)
            if given is None:
                continue
            for place, operand in enumerate(op.operands):
                others = [o for at, o in enumerate(op.operands) if at != place]
                if place not in op.linear:
                    others.append(operand)
                if op.name in ("add", "view"):
                    others = []
                made = self.add(
                    f"{op.name}.backward{place}",
                    [given, *others],
                    self.dims[operand],
                    linear=[0],
                    splits=op.splits,
                    flops=op.flops > 0,
                    backward=True,
                )
                if operand in gradients:
                    sum_of = [gradients[operand], made]
                    made = self.add("sum", sum_of, self.dims[operand], linear=(0, 1), backward=True)
                gradients[operand] = made
        for parameter in self.parameters:
            self.parameters[parameter] = gradients[parameter]

    def layer(self, x: int) -> int:
        """Attention and a gated MLP, as a compiler's graph has them: views are operations too."""
        normed = self._norm(x)
        heads = []
        for _ in range(3):
            made = self._linear(normed, "hnd", "bsnd")
            heads.append(self.add("view", [made], "bsnd", linear=[0]))
        for at in range(2):
            turned = self.add("view", [heads[at]], "bsnd", linear=[0], splits="bsn")
            cosine = self.add("mul", [heads[at], self.table], "bsnd", linear=[0], splits="bsn")
            sine = self.add("mul", [turned, self.table], "bsnd", linear=[0], splits="bsn")
            heads[at] = self.add("add", [cosine, sine], "bsnd", linear=(0, 1))
        heads = [self.add("view", [head], "bsnd", linear=[0]) for head in heads]
        mixed = self.add("attention", heads, "bsnd", splits="bn", flops=True)
        mixed = self.add("view", [mixed], "bsnd", linear=[0])
        x = self.add("add", [x, self._linear(mixed, "ndh", "bsh")], "bsh", linear=(0, 1))
        normed = self._norm(x)
        gate, up = (self._linear(normed, "hf", "bsf") for _ in range(2))
        gate = self.add("silu", [gate], "bsf")
        inner = self.add("mul", [gate, up], "bsf", linear=(0, 1))
        down = self._linear(inner, "fh", "bsh")
        return self.add("add", [x, down], "bsh", linear=(0, 1))

    def _norm(self, x: int) -> int:
        squares = self.add("square", [x], "bsh")
        mean = self.add("mean", [squares], "bs", linear=[0])
        root = self.add("rsqrt", [mean], "bs")
        scaled = self.add("mul", [x, root], "bsh", linear=(0, 1))
        return self.add("mul", [scaled, self.parameter("h")], "bsh", linear=(0, 1))

    def _linear(self, x: int, weight: str, result: str) -> int:
        turned = self.add("view", [self.parameter(weight)], weight, linear=[0])
        flat = self.add("view", [x], self.dims[x], linear=[0])
        made = self.add("linear", [flat, turned], result, linear=(0, 1), flops=True)
        return self.add("view", [made], result, linear=[0])

    @property
    def table(self) -> int:
        """Angles of the rotary embedding: made anew by each that asks."""
        return self.add("angles", [], "sd")

    def rows(self, op: Operation) -> list[tuple[str, ...]]:
        """On one axis, the ways to do an operation: placements of its operands and its result."""
        ins, out = [self.dims[o] for o in op.operands], self.dims[op.result]
        found = [(WHOLE,) * (len(ins) + 1)]
        for letter in op.splits:
            if not ins and letter not in out:
                continue
            taken = [letter if letter in dims else WHOLE for dims in ins]
            left = letter if letter in out else PARTIAL
            has_sum = any(letter in dims for dims in ins) and letter not in out
            if has_sum and not op.linear:
                continue
            found.append((*taken, left))
        if op.linear and op.name in ("add", "sum"):
            found.append((PARTIAL,) * (len(ins) + 1))
        else:
            for place in op.linear:
                taken = [PARTIAL if at == place else WHOLE for at in range(len(ins))]
                found.append((*taken, PARTIAL))
        return found

    def fits(self, dims: str, placement: Placement) -> bool:
        parts = dict.fromkeys(dims, 1)
        for ways, where in zip(self.mesh, placement, strict=True):
            if where in parts:
                parts[where] *= ways
        return all(SIZES[d] % ways == 0 for d, ways in parts.items())

    def local(self, dims: str, placement: Placement) -> float:
        """Bytes on a rank."""
        whole = BYTES * math.prod(SIZES[d] for d in dims)
        ways = (n for n, at in zip(self.mesh, placement, strict=True) if at in dims)
        return whole / math.prod(ways)

    def move(self, dims: str, source: Placement, target: Placement) -> float:
        """Seconds, an axis at a time."""
        total, now = 0.0, source
        for axis, (ways, after) in enumerate(zip(self.mesh, target, strict=True)):
            before = now[axis]
            if before == after:
                continue
            if after == PARTIAL:
                return math.inf
            then = (*now[:axis], after, *now[axis + 1 :])
            size = max(self.local(dims, now), self.local(dims, then))
            wire = (ways - 1) / ways * size / LINK
            if before == WHOLE:
                total += 1e-6
            elif before == PARTIAL and after == WHOLE:
                total += LATENCY + 2 * wire
            elif PARTIAL not in (before, after) and WHOLE not in (before, after):
                total += LATENCY + wire / ways * 1.5
            else:
                total += LATENCY + wire
            now = then
        return total

    def problem(self, memory: float | None = None, *, keeps_moved: bool = True) -> Problem:
        """The choice of placements; `memory` bounds the part of all parameters a rank holds."""
        costs: list[np.ndarray] = []
        labels: list[str] = []
        made: dict[int, tuple[int, list[Placement]]] = {}
        taken: list[tuple[int, int, list[Placement], bool]] = []
        held = {}
        for parameter, gradient in self.parameters.items():
            dims = self.dims[parameter]
            rows = [(p,) for p in (WHOLE, *dims)]
            placements = [
                tuple(r[0] for r in row) for row in itertools.product(rows, repeat=self._axes)
            ]
            placements = [p for p in placements if self.fits(dims, p)]
            group = len(costs)
            costs.append(np.zeros(len(placements)))
            labels.append(f"parameter{parameter}")
            made[parameter] = group, placements
            taken.append((gradient, group, placements, True))
            held[group] = np.array([self.local(dims, p) for p in placements])
        for op in self.operations:
            tensors = [self.dims[t] for t in (*op.operands, op.result)]
            options = []
            for row in itertools.product(self.rows(op), repeat=self._axes):
                option = [tuple(axis[t] for axis in row) for t in range(len(tensors))]
                if all(map(self.fits, tensors, option)):
                    options.append((option, row))
            group = len(costs)
            seconds = []
            for option, row in options:
                ways = math.prod(
                    n
                    for n, axis in zip(self.mesh, row, strict=True)
                    if set(axis) - {WHOLE, PARTIAL}
                )
                size = sum(map(self.local, tensors, option))
                work = max(op.flops / ways / FLOPS, size / BYTES_A_SECOND)
                seconds.append(0.0 if op.name.startswith("view") else FLOOR + work)
            costs.append(np.array(seconds))
            labels.append(op.name)
            made[op.result] = group, [option[-1] for option, _ in options]
            for place, operand in enumerate(op.operands):
                taken.append(
                    (operand, group, [option[place] for option, _ in options], op.backward)
                )
        values, uses, index = [], [], {}
        known: dict[int, dict[Placement, int]] = {}
        for tensor, (_, placements) in made.items():
            known[tensor] = {p: i for i, p in enumerate(dict.fromkeys(placements))}
        for tensor, _, placements, _ in taken:
            for placement in placements:
                if tensor in known:
                    known[tensor].setdefault(placement, len(known[tensor]))
        moves: dict[tuple[str, tuple[Placement, ...]], np.ndarray] = {}
        for tensor, (group, placements) in made.items():
            dims, every = self.dims[tensor], tuple(known[tensor])
            if (dims, every) not in moves:
                table = [[self.move(dims, a, b) for b in every] for a in every]
                moves[dims, every] = np.array(table)
            index[tensor] = len(values)
            at = tuple(known[tensor][p] for p in placements)
            values.append(Value(group, at, moves[dims, every], keeps_moved))
        given: dict[int, int] = {}
        for tensor, group, placements, backward in taken:
            if tensor not in index:  # the input of the program, whole
                given[tensor] = len(costs)
                costs.append(np.zeros(1))
                labels.append("input")
                every = tuple(dict.fromkeys([(WHOLE,) * self._axes, *placements]))
                known[tensor] = {p: i for i, p in enumerate(every)}
                table = [[self.move(self.dims[tensor], a, b) for b in every] for a in every]
                index[tensor] = len(values)
                values.append(Value(given[tensor], (0,), np.array(table), keeps_moved))
            elif tensor in given and not set(placements) <= set(known[tensor]):
                every = tuple(dict.fromkeys([*known[tensor], *placements]))
                known[tensor] = {p: i for i, p in enumerate(every)}
                table = [[self.move(self.dims[tensor], a, b) for b in every] for a in every]
                values[index[tensor]] = Value(given[tensor], (0,), np.array(table), keeps_moved)
            at = tuple(known[tensor][p] for p in placements)
            uses.append(Use(index[tensor], group, at, backward))
        row = []
        if memory is not None:
            whole = sum(float(h[0]) for h in held.values())
            row.append(MemoryRow(memory * whole, held, 0.0, "parameters"))
        return Problem(costs, values, uses, row, labels)

    @property
    def _axes(self) -> int:
        return len(self.mesh)


def transformer(
    layers: int,
    mesh: tuple[int, ...] = (8,),
    memory: float | None = None,
    *,
    keeps_moved: bool = True,
) -> Problem:
    """A training step of a decoder of so many equal layers."""
    program = Program(mesh)
    x = program.tensor("bsh")
    for _ in range(layers):
        x = program.layer(x)
    program.differentiate(x)
    return program.problem(memory, keeps_moved=keeps_moved)
