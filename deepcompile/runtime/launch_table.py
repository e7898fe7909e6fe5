"""What a compiled graph does on a GPU, as numbers that one C function walks (launcher.h).

A table is a row of i64, one record after another, each with its kind first:

    CALL number                                                  back into Python
    LAUNCH assuming general programs count (kind first second)*count
    END

`assuming` and `general` are addresses of `LoadedRecord`s: code that takes the ALIGNED arguments for
multiples of 16, and code that does not, used when one is not. An argument is a pointer (what a slot
points to, plus bytes) or a number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

END, LAUNCH, CALL = range(3)
POINTER, ALIGNED, NUMBER = range(3)
MOST_ARGUMENTS = 512
ALIGNMENT = 16


class LoadedRecord(ctypes.Structure):
    """A function on a device as the walk reads it; `function` is 0 until there is one."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("shared", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Argument:
    """One argument of a launch: `first` is a slot and `second` bytes, or `first` is a number."""

    kind: int
    first: int
    second: int = 0


@dataclass
class LaunchTable:
    """A table being written; `done()` gives what the walk reads."""

    numbers: list[int] = field(default_factory=list)
    _kept: list[Any] = field(default_factory=list)

    def call(self, number: int) -> None:
        """Call back into Python."""
        self.numbers += (CALL, number)

    def keep(self, thing: Any) -> None:
        """Keep alive what the table has the address of."""
        self._kept.append(thing)

    def launch(
        self,
        assuming: LoadedRecord,
        general: LoadedRecord,
        programs: int,
        arguments: Sequence[Argument],
    ) -> int:
        """Launch a function; returns where in the table that stands."""
        at = len(self.numbers)
        self._kept += (assuming, general)
        records = ctypes.addressof(assuming), ctypes.addressof(general)
        self.numbers += (LAUNCH, *records, programs, len(arguments))
        for argument in arguments:
            self.numbers += (argument.kind, argument.first, argument.second)
        return at

    def done(self) -> Any:
        """The numbers as C sees them; they keep alive all that they point to."""
        array: Any = (ctypes.c_int64 * (len(self.numbers) + 1))(*self.numbers, END)
        array.kept = self._kept
        return array
