"""What tells one failure from another. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from deepcompile.errors import DeepCompileError

Kind = Literal["numerics", "compile", "run", "signal", "timeout", "slow", "exit"]
"""How something fails: other numbers than in eager, an exception while compiling or running, an
end by a signal, no end at all, too much time, an exit status."""

CRASHES = ("compile", "run", "signal", "timeout")
_LONGEST = 300
_NAMES = (
    (re.compile(r"0x[0-9a-fA-F]+"), "ADDRESS"),
    (re.compile(r"(/[\w.+-]+)+/"), "/"),
    (re.compile(r"%?\b[A-Za-z_]+(_\d+)+\b"), "NAME"),
    (re.compile(r"\b[a-z]\d+(_[a-z]+)?\b"), "NAME"),
    (re.compile(r"'[^']*'|\"[^\"]*\""), "TEXT"),
    (re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?"), "N"),
)


@dataclass(frozen=True)
class Signature:
    """One failure.

    Attributes:
        what: the type of the exception, the signal, or how numbers differ: `values`, `nan`, `inf`,
            `shape`.
        detail: the message as it was; not part of what must be equal.
        error: of numbers, the largest error relative to the largest value; of time, the ratio.
    """

    kind: Kind
    what: str = ""
    detail: str = ""
    error: float = 0.0

    @property
    def message(self) -> str:
        """The first line of the detail without names, numbers and addresses."""
        return normalised(self.detail)

    def matches(self, other: Signature) -> bool:
        """Whether both are one failure, wherever in a program it happens."""
        if (self.kind, self.what) != (other.kind, other.what):
            return False
        return self.kind not in ("compile", "run") or self.message == other.message

    def __str__(self) -> str:
        return ": ".join(part for part in (self.kind, self.what, self.detail) if part)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Signature:
        """From `to_dict`; other entries are left out."""
        return cls(**{k: fields[k] for k in ("kind", "what", "detail", "error") if k in fields})


def normalised(text: str) -> str:
    """The first line that says something, without what differs from one run to the next."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for pattern, name in _NAMES:
        line = pattern.sub(name, line)
    return line[:_LONGEST]


def signature_of_error(error: BaseException, kind: Kind) -> Signature:
    """The signature of an exception: of what caused it, where something did."""
    seen: set[int] = set()
    # Errors of ours have the cause in their text, and may come without the cause itself.
    while id(error) not in seen and not isinstance(error, DeepCompileError):
        seen.add(id(error))
        # Dynamo keeps what a backend raised in an attribute of its own.
        error = error.__cause__ or getattr(error, "inner_exception", None) or error
    return Signature(kind, type(error).__name__, str(error)[:2000])
