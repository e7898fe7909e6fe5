"""Rates that were measured on a machine, kept in a file; plans use them in place of the tables.

One file holds what was measured of several machines: a device by its name, with a number of threads
and a version of torch. It is JSON:

    {"schema": 1, "machines": [{"device": "...", "threads": 2, "torch": "2.13.0", "date": "...",
      "bandwidth": 2.1e10, "launch": 1e-06, "flops": {"f32": 1.2e11, "bf16": 6e10}, "link": {}}]}

All processes of a job must plan alike, so they need the same file, or none.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CalibrationError
from .rates import Rates

SCHEMA = 1


@dataclass(frozen=True)
class Machine:
    """What measured rates hold for.

    Attributes:
        device: its name, e.g. that of the processor.
        threads: of torch on a CPU; 0 for other devices, where they make no difference.
        torch: its version.
    """

    device: str
    threads: int
    torch: str

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{self.device}{threads}, torch {self.torch}"


@dataclass(frozen=True)
class Measured:
    """What was measured on a machine.

    Attributes:
        machine: on which.
        date: year, month and day, as in ISO 8601.
        bandwidth: bytes a second that a large copy reads and writes, together.
        launch: seconds of a call that has next to nothing to do.
        flops: operations a second of matrix products, by dtype; "f32" always.
        link: bytes a second to the device ("to_device") and back ("to_host"); empty for a CPU.
    """

    machine: Machine
    date: str
    bandwidth: float
    launch: float
    flops: Mapping[str, float]
    link: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        fields = asdict(self)
        return fields.pop("machine") | fields

    def over(self, table: Rates) -> Rates:
        """The rates of a table with what was measured in their place.

        Dtypes that were not measured are as much quicker or slower as f32 is.
        """
        scale = self.flops["f32"] / table.flops["f32"]
        return replace(
            table,
            name=str(self.machine),
            bandwidth=self.bandwidth,
            launch=self.launch,
            flops={dtype: rate * scale for dtype, rate in table.flops.items()} | dict(self.flops),
            # Within a CPU's memory, what is copied is read and written.
            link=min(self.link.values(), default=self.bandwidth / 2),
            source=f"calibrated {self.date}",
        )


def rates_measured(table: Rates, machine: Machine, file: Path) -> Rates:
    """The rates of a table, or what the file says of this machine.

    A file that cannot be read counts as none, with a warning, once.
    """
    try:
        known = load_measured(file)
    except CalibrationError as error:
        _warn_once(f"{error}; plans use the table of rates")
        return table
    found = next((entry for entry in known if entry.machine == machine), None)
    return table if found is None else found.over(table)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(f"deepcompile: {message}.", stacklevel=3)


def load_measured(file: Path) -> tuple[Measured, ...]:
    """Everything in a file; nothing where there is none.

    Raises:
        CalibrationError: for a file that cannot be read or holds something else; it says what.
    """
    try:
        given = json.loads(file.read_text(encoding="utf8"))
        if given["schema"] != SCHEMA:
            raise ValueError(f"schema {given['schema']!r}, known is {SCHEMA}")
        return tuple(map(_measured, given["machines"]))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise CalibrationError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CalibrationError(
            f"{file} holds no measured rates ({what}): delete it, and measure again with "
            "`deepcompile doctor --calibrate`"
        ) from None


def _measured(given: Mapping[str, Any]) -> Measured:
    threads = given["threads"]
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise ValueError(f"threads is {threads!r}")
    flops = _rates(given, "flops")
    if "f32" not in flops:
        raise ValueError("flops has no f32")
    return Measured(
        Machine(_text(given, "device"), threads, _text(given, "torch")),
        _text(given, "date"),
        _positive("bandwidth", given["bandwidth"]),
        _positive("launch", given["launch"]),
        flops,
        _rates(given, "link"),
    )


def _rates(given: Mapping[str, Any], name: str) -> dict[str, float]:
    return {key: _positive(f"{name} {key}", rate) for key, rate in given[name].items()}


def _text(given: Mapping[str, Any], name: str) -> str:
    if not isinstance(given[name], str):
        raise ValueError(f"{name} is {given[name]!r}")
    return str(given[name])


def _positive(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def save_measured(file: Path, found: Sequence[Measured]) -> None:
    """Add machines to a file, in place of what it had of the same ones.

    Raises:
        CalibrationError: for a file that cannot be read or written, or holds something else.
    """
    machines = {entry.machine for entry in found}
    kept = [entry for entry in load_measured(file) if entry.machine not in machines]
    document = {"schema": SCHEMA, "machines": [entry.to_dict() for entry in (*kept, *found)]}
    try:
        _replace(file, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise CalibrationError(f"{file} cannot be written: {error.strerror or error}") from None


def _replace(file: Path, text: str) -> None:
    """Write whole or not at all: another process may be reading."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf8") as out:
            out.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
