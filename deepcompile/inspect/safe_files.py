"""Reading files that anyone may have written: limits, no way out of a folder, nothing raw.

A run directory can come by mail. Its files are read only where they really lie inside it and are
ordinary files of bearable size, and control characters in what they hold become visible text
(`\\x1b`), so that no terminal or page is driven by them.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepcompile.errors import RunDirError

MAX_TEXT = 256 << 20
"""Bytes of a graph's or kernel's text."""
MAX_JSON = 64 << 20
"""Bytes of one JSON document."""
MAX_LINE = 1 << 20
"""Bytes of one line of events."""
MAX_NAME = 200
"""Characters of a name of a file that are shown."""

# Control characters but for tab and newline, marks that turn the direction of text, separators of
# lines and paragraphs, and halves of surrogate pairs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_IN_JSON = re.compile(r"\\[ubfr]|" + _UNSEEN.pattern)


def visible(text: str) -> str:
    """`text` with characters that act on a terminal written out, as in `\\x1b`; lines stay."""
    return _UNSEEN.sub(_written_out, text) if not text.isprintable() else text


def visible_line(text: str) -> str:
    """As `visible`, in one line: for names."""
    if text.isprintable():
        return text
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown_name(path: Path | str) -> str:
    """A path's last part in one line of bearable length."""
    name = visible_line(os.path.basename(path))
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def checked_file(root: Path, file: Path, limit: int) -> Path:
    """`file`, when it is an ordinary file within `root` of at most `limit` bytes.

    Raises:
        RunDirError: it is not; the text says why.
    """
    try:
        real = Path(os.path.realpath(file))
        if not real.is_relative_to(os.path.realpath(root)):
            raise RunDirError(f"{_shown(file)} leads out of the run; it is not followed")
        found = os.stat(real)
    except (OSError, ValueError) as error:
        raise RunDirError(f"{_shown(file)} cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise RunDirError(f"{_shown(file)} is no ordinary file")
    if found.st_size > limit:
        size = f"{found.st_size >> 20} MiB"
        raise RunDirError(f"{_shown(file)} has {size}; more than {limit >> 20} MiB is not read")
    return real


def read_text(root: Path, file: Path, limit: int = MAX_TEXT) -> str:
    """What is in a file within `root`, visible; bytes that are no UTF-8 become U+FFFD.

    Raises:
        RunDirError: as `checked_file`, or it cannot be read.
    """
    checked = checked_file(root, file, limit)
    try:
        return visible(checked.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise RunDirError(f"{_shown(file)} cannot be read: {_reason(error)}") from None


def read_json(root: Path, file: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file within `root`; its texts are visible.

    Raises:
        RunDirError: as `checked_file`, or it is cut or holds something else.
    """
    checked = checked_file(root, file, limit)
    try:
        value = parse_json(checked.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirError(f"{_shown(file)} cannot be read: {_reason(error)}") from None
    if not isinstance(value, dict):
        raise RunDirError(f"{_shown(file)} holds no JSON object")
    return value


def parse_json(text: str) -> Any:
    """The value, its texts visible. Raises ValueError or RecursionError."""
    value = json.loads(text)
    return _visible_data(value) if _IN_JSON.search(text) else value


def _visible_data(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_visible_data(item) for item in value]
    if isinstance(value, dict):
        return {visible(key): _visible_data(item) for key, item in value.items()}
    return value


def json_lines(root: Path, file: Path) -> Iterator[dict[str, Any] | None]:
    """The JSON objects in the lines of a file of any size; None for a line that holds none.

    Raises:
        RunDirError: as `checked_file`, or it cannot be read.
    """
    checked = checked_file(root, file, 1 << 62)
    try:
        with checked.open("rb") as lines:
            while line := lines.readline(MAX_LINE):
                if len(line) == MAX_LINE and not line.endswith(b"\n"):
                    _skip_line(lines)
                    yield None
                elif line.strip():
                    yield _object(line)
    except OSError as error:
        raise RunDirError(f"{_shown(file)} cannot be read: {_reason(error)}") from None


def _skip_line(lines: Any) -> None:
    while (rest := lines.readline(MAX_LINE)) and not rest.endswith(b"\n"):
        continue


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _shown(file: Path) -> str:
    return visible_line(str(file))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return visible_line(str(error)) or type(error).__name__
