"""Linear programs without an answer: because there is no solver, or because it failed."""

from __future__ import annotations

from typing import Any

NO_SCIPY = "no SciPy"


class Unsolved(Exception):
    """A linear program has no answer; the text says why: `NO_SCIPY`, or what the solver said."""


def failed(result: Any) -> Unsolved:
    """For a result of `scipy.optimize` that has no solution."""
    said = " ".join(str(result.message).split())
    return Unsolved(f"HiGHS failed with status {result.status}: {said}")
