"""How much memory a piece of code takes at its worst: what `explain` measures with, for tests."""

from __future__ import annotations

from deepcompile.explanation.tracked import course_of_bytes, peak_bytes

__all__ = ["course_of_bytes", "peak_bytes"]
