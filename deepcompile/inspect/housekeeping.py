"""Removing runs, and packing one into a file to send."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepcompile.errors import RunDirError
from deepcompile.inspect.reader import is_run, list_runs
from deepcompile.inspect.safe_files import shown_name, visible_line


@dataclass(frozen=True)
class Packed:
    """A file with a run in it; `left_out` names what did not go in, with the reason."""

    file: Path
    files: int
    bytes: int
    left_out: tuple[str, ...]


def run_size(run: Path) -> int:
    """Bytes of the ordinary files of a run, links not followed."""
    return sum(found.st_size for _, found in _files(run, lambda text: None))


def checked_run(path: Path) -> Path:
    """`path`, when it is a run that may be removed.

    Raises:
        RunDirError: it is a link, or no run.
    """
    shown = visible_line(str(path))
    if path.is_symlink():
        raise RunDirError(f"{shown} is a link; name the run itself")
    if not path.is_dir():
        raise RunDirError(f"{shown} is not a directory")
    if not is_run(path):
        raise RunDirError(f"{shown} is no run: it has no run.json; nothing is removed")
    return path


def remove_run(path: Path) -> int:
    """Remove a run; the bytes that are free then. Links in it go, what they lead to stays.

    Raises:
        RunDirError: as `checked_run`, or it cannot be removed.
    """
    size = run_size(checked_run(path))
    latest = path.parent / "latest"
    try:
        shutil.rmtree(path)
        left = list_runs(path.parent)
        if latest.is_file() and latest.read_text("utf-8", "replace").strip() == path.name:
            if left:
                latest.write_text(left[-1].name + "\n", encoding="utf-8")
            else:
                latest.unlink()
    except OSError as error:
        raise RunDirError(
            f"{visible_line(str(path))} cannot be removed: {error.strerror}"
        ) from None
    return size


def pack_run(run: Path, file: Path) -> Packed:
    """Write the ordinary files of a run into a new zip file, under the run's name.

    Raises:
        RunDirError: `file` exists, or cannot be written.
    """
    left_out: list[str] = []
    count = total = 0
    try:
        with file.open("xb") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
            for path, found in _files(run, left_out.append):
                if os.path.samestat(found, os.fstat(out.fileno())):
                    continue
                inside = Path(run.resolve().name) / path.relative_to(run)
                entry = zipfile.ZipInfo(_utf8(inside.as_posix()), date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                with path.open("rb") as source, packed.open(entry, "w", force_zip64=True) as to:
                    shutil.copyfileobj(source, to)
                count += 1
                total += found.st_size
    except FileExistsError:
        raise RunDirError(f"{visible_line(str(file))} exists; name another file with -o") from None
    except OSError as error:
        file.unlink(missing_ok=True)
        raise RunDirError(
            f"{visible_line(str(file))} cannot be written: {error.strerror}"
        ) from None
    return Packed(file, count, total, tuple(left_out))


def _utf8(name: str) -> str:
    """A name that a zip file can hold."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8").replace("\\", "_")


def _files(run: Path, refuse: Callable[[str], object]) -> Iterator[tuple[Path, os.stat_result]]:
    """Ordinary files below a run, in order; `refuse` is told of all else."""
    for folder, folders, names in os.walk(run, followlinks=False):
        folders.sort()
        for name in sorted([*names, *(n for n in folders if Path(folder, n).is_symlink())]):
            path = Path(folder, name)
            try:
                found = path.lstat()
            except OSError as error:
                refuse(f"{shown_name(path)}: {error.strerror}")
                continue
            if stat.S_ISREG(found.st_mode):
                yield path, found
            else:
                what = "a link" if stat.S_ISLNK(found.st_mode) else "no ordinary file"
                refuse(f"{shown_name(path)} is {what}")
