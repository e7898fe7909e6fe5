"""Where built kernels are kept, how large that is, and making it smaller. Imports no torch.

Entries live in `<cache directory>/kernels`, so that clearing never touches anything else in a
directory that a user named. Files of one entry share their name up to the first dot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepcompile.errors import CacheError
from deepcompile.options import Options

_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Kernels built by deepcompile; safe to delete.\n"
)


@dataclass(frozen=True)
class Entry:
    """One cached build: its files, their size in bytes and when it was last used."""

    name: str
    files: tuple[Path, ...]
    size: int
    used: float


def cache_dir(options: Options | None = None) -> Path:
    """The folder of the entries; it need not exist yet.

    `options.cache_dir`, else `$XDG_CACHE_HOME/deepcompile`, else `~/.cache/deepcompile`.
    """
    options = options if options is not None else Options.resolve()
    if options.cache_dir is not None:
        return Path(options.cache_dir) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "deepcompile" / "kernels"


def rates_file(options: Options | None = None) -> Path:
    """The file of rates that were measured, beside the folder of the entries; it need not exist.

    Clearing the cache leaves it: what it holds takes a command to make.
    """
    return cache_dir(options).parent / "rates.json"


def plans_folder(options: Options | None = None) -> Path:
    """The folder of placements that were decided, beside that of the entries; it need not exist."""
    return cache_dir(options).parent / "plans"


def make_cache_dir(folder: Path) -> Path:
    """Create `folder` and mark it as a cache for backup programs. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / "CACHEDIR.TAG").open("x") as tag:
        tag.write(_TAG)
    return folder


def entries(folder: Path) -> tuple[Entry, ...]:
    """What is kept, least recently used first. Files that vanish meanwhile are left out."""
    found: dict[tuple[str, str], list[tuple[Path, os.stat_result]]] = {}
    for path, status in _files(folder):
        found.setdefault((str(path.parent), path.name.partition(".")[0]), []).append((path, status))
    result = [
        Entry(
            name,
            tuple(path for path, _ in files),
            sum(status.st_size for _, status in files),
            max(status.st_mtime for _, status in files),
        )
        for (_, name), files in found.items()
    ]
    return tuple(sorted(result, key=lambda entry: (entry.used, entry.name)))


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            with contextlib.suppress(FileNotFoundError):
                if name != "CACHEDIR.TAG":
                    yield path, path.stat(follow_symlinks=False)


def total_size(folder: Path) -> int:
    """Bytes of all entries."""
    return sum(entry.size for entry in entries(folder))


def trim(folder: Path, limit: int) -> int:
    """Remove least recently used entries until at most `limit` bytes remain; bytes freed.

    An entry counts as used when its file's modification time is set (`os.utime` on a hit). Several
    processes may trim at once. A library that a process has loaded stays valid there.
    """
    kept = entries(folder)
    excess = sum(entry.size for entry in kept) - limit
    freed = 0
    for entry in kept:
        if freed >= excess:
            break
        _remove(entry)
        freed += entry.size
    return freed


def clear(folder: Path) -> int:
    """Remove all entries; bytes freed. Raises `CacheError` when some cannot be removed."""
    freed = 0
    for entry in entries(folder):
        try:
            _remove(entry)
        except OSError as error:
            raise CacheError(f"the cache {folder} cannot be cleared: {error}") from error
        freed += entry.size
    return freed


def _remove(entry: Entry) -> None:
    for path in entry.files:
        path.unlink(missing_ok=True)
