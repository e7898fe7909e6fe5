"""What the exit status of the command means."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses; the text after each is the one that the docs show."""

    OK = 0
    NO = 1
    USAGE = 2
    MODEL_FAILED = 3
    BUG = 4
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One line for the docs."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.OK: "the command did what was asked",
    Exit.NO: "the answer to the question is no: a mismatch, a difference, a problem found",
    Exit.USAGE: "bad usage: an unknown command, option, pass or run",
    Exit.MODEL_FAILED: "the user's model failed to compile",
    Exit.BUG: "a bug in deepcompile",
    Exit.INTERRUPTED: "interrupted by the user",
}
