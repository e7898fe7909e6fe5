"""Text of a run made safe for a page: visible control characters, bounded lines, packed data."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from deepcompile.inspect.safe_files import visible

LONGEST = 4000
"""Characters of a line or a field; what is behind them is counted only."""


def clean(text: object, longest: int = LONGEST) -> str:
    """`text` with every character visible, at most `longest` characters."""
    shown = str(text)
    if len(shown) > longest:
        shown = f"{shown[:longest]}… ({len(shown) - longest} more characters)"
    return visible(shown)


def clean_all(value: Any) -> Any:
    """JSON data with all its texts cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): clean_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_all(item) for item in value]
    return value


def packed(value: Any) -> str:
    """Cleaned JSON data, compressed, as characters that mean nothing in HTML."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(zlib.compress(data.encode("utf-8"), 6)).decode("ascii")


def number(value: object, default: float = 0.0) -> float:
    """`value` if it is a finite number of a file, else `default`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return float(value) if abs(value) < 1e30 else default


def size(nbytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e6:.2f} µs"
