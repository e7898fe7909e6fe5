"""Writing Triton: lines, names of values, index expressions and the masks of a tile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..ir.index import SIGNED, ZERO, Divided, Index, product
from ..ir.nest import Accumulate, Kernel, Store, Valued, index_values
from .schedule import dependence
from .triton_schedule import TritonSchedule


@dataclass(frozen=True)
class Extent:
    """Which of the two dimensions of a tile a value varies along."""

    points: bool
    row: bool

    def __or__(self, other: Extent) -> Extent:
        return Extent(self.points or other.points, self.row or other.row)

    def covers(self, other: Extent) -> bool:
        return self | other == self


UNIFORM = Extent(False, False)


class Writer:
    """The text of one Triton function in the making."""

    def __init__(self, kernel: Kernel, schedule: TritonSchedule) -> None:
        self.kernel = kernel
        self.schedule = schedule
        self.lines: list[str] = []
        self.depth = 1
        self.names: dict[int, str] = {}
        self.varies = dependence(kernel)
        self.definition: dict[int, Valued] = {
            instr.id: instr for instr in kernel.instructions() if not isinstance(instr, Store)
        }
        self.parallel = frozenset(axis.name for axis in kernel.parallel)
        self.reduced = frozenset(axis.name for axis in kernel.reduced)
        self.rank = 2 if kernel.reduced else 1
        self.accumulators = [i for i in kernel.instructions() if isinstance(i, Accumulate)]
        self.points = product([axis.extent for axis in kernel.parallel])
        self.row = product([axis.extent for axis in kernel.reduced])
        self.x_size = str(schedule.x_block)
        self.r_size = str(schedule.r_block)
        self.mask_points = self._needs_mask(self.points, schedule.x_block)
        self.mask_row = self._needs_mask(self.row, schedule.r_block)

    def _needs_mask(self, extent: Index, block: int) -> bool:
        constant = extent.constant()
        # Nothing to do is no multiple of a tile either.
        return not constant or constant % block != 0

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(head)
        self.depth += 1
        yield
        self.depth -= 1

    # -- tiles ----------------------------------------------------------------------------------

    @property
    def int_type(self) -> str:
        return "tl.int64" if self.schedule.wide else "tl.int32"

    def shape(self, extent: Extent) -> str:
        """The shape of a value as text."""
        x = self.x_size if extent.points else "1"
        if self.rank == 1:
            return f"[{x}]"
        return f"[{x}, {self.r_size if extent.row else '1'}]"

    def extent(self, value: int) -> Extent:
        """Along what a value varies."""
        varies = self.varies[value]
        return Extent(bool(varies & self.parallel), bool(varies & self.reduced))

    def index_extent(self, index: Index) -> Extent:
        names = index.names()
        found = Extent(bool(names & self.parallel), bool(names & self.reduced))
        for value in index_values(index):
            found = found | self.extent(value)
        return found

    def bounds(self, extent: Extent) -> list[str]:
        """The conditions under which a value of that extent is inside of the iteration space."""
        found = []
        if extent.points and self.mask_points:
            found.append("xmask")
        if extent.row and self.mask_row:
            found.append("rmask")
        return found

    def conditions(self, extent: Extent) -> list[str]:
        """The conditions under which an effect of that extent takes place."""
        return self.bounds(extent)

    def full(self, text: str, dtype: str, extent: Extent = UNIFORM) -> str:
        return f"tl.full({self.shape(extent)}, {text}, {dtype})"

    def arange(self, block: str, along_row: bool) -> str:
        text = f"tl.arange(0, {block})"
        if self.rank == 1:
            return text
        return f"{text}[None, :]" if along_row else f"{text}[:, None]"

    def define_axes(self, names: list[tuple[str, Index]], flat: str) -> None:
        """Define the axes as what `flat`, their linear position, says, the last one fastest."""
        if len(names) == 1:
            self.line(f"{names[0][0]} = {flat}")
            return
        below = Index.of(1)
        for number, (name, extent) in reversed(list(enumerate(names))):
            text = flat if below == Index.of(1) else f"({flat} // {self.i(below)})"
            if number:
                text = f"{text} % {self.i(extent)}"
            self.line(f"{name} = {text}")
            below = below * extent

    # -- index expressions ----------------------------------------------------------------------

    def i(self, index: Index) -> str:
        """An index expression as text."""
        if index == ZERO:
            return "0"
        parts = []
        for monomial, coefficient in index.terms:
            factors = [self._atom(atom) for atom in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, _integer(coefficient))
            parts.append(" * ".join(factors))
        text = " + ".join(parts)
        return text if text.isidentifier() or text.isdigit() else f"({text})"

    def _atom(self, atom: str | Divided) -> str:
        if isinstance(atom, Divided):
            top, bottom = self.i(atom.numerator), self.i(atom.denominator)
            if _never_negative(atom.numerator):
                return f"({top} {'//' if atom.op == 'floordiv' else '%'} {bottom})"
            function = "floordiv_int" if atom.op == "floordiv" else "remainder_int"
            return f"dl.{function}({top}, {bottom})"
        if atom[0] == "v" and atom[1:].isdigit():
            return self.names[int(atom[1:])]
        return atom

    def pointers(self, buffer: str, index: Index, at_least: Extent = UNIFORM) -> tuple[str, Extent]:
        """Pointers to elements as text, and along what they vary."""
        extent = self.index_extent(index)
        text = self.i(index)
        if not extent.covers(at_least):
            extent = extent | at_least
            return f"{buffer} + ({text} + tl.zeros({self.shape(extent)}, {self.int_type}))", extent
        if extent == UNIFORM and not index_values(index):
            text = self.full(text, self.int_type)
        return f"{buffer} + {text}", extent


def _integer(value: int) -> str:
    """A literal; Triton takes one that fits 32 bits for as wide as what it meets."""
    if not -(2**31) <= value < 2**31:
        return f"tl.full([], {value}, tl.int64)"
    return str(value) if value >= 0 else f"({value})"


def _never_negative(index: Index) -> bool:
    """Whether an index is a sum of products of numbers that are never negative."""
    for monomial, coefficient in index.terms:
        if coefficient < 0:
            return False
        for atom in monomial:
            if isinstance(atom, Divided):
                if not _never_negative(atom.numerator):
                    return False
            elif atom.startswith(SIGNED) or (atom[0] == "v" and atom[1:].isdigit()):
                return False
    return True
