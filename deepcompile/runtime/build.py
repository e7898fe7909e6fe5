"""Building C++ into a loaded library, through a cache on disk that any number of processes share.

An entry is named by a hash of the source, the compiler and the flags, and is written to a name
of its own before it is renamed into place. A cached file carries its own checksum: one that was
cut short or altered is rebuilt. Nothing about the cache can fail a compile: without it,
libraries are built anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..cache_dir import cache_dir, make_cache_dir, trim
from ..errors import CompilerMissing
from ..options import Options

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-semantic-interposition",
    "-Wno-psabi",
    "-w",
    "-shared",
    "-fPIC",
)
_TRAILER = b"\ndeepcompile-sha256:"
TRIM_EVERY = 16
LONGEST_BUILD = 120
"""Seconds after which the C++ compiler is stopped, and the graph runs in eager."""


class BuildFailed(Exception):
    """The C++ compiler refused a source; the message is the end of what it said."""


@dataclass(frozen=True)
class Library:
    """A loaded shared library, whether it was found in the cache, and where it was loaded from."""

    handle: ctypes.CDLL
    cached: bool
    path: str


@lru_cache(maxsize=1)
def find_compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: $CXX (which may be `ccache g++`), else g++, c++, clang++.

    Raises:
        CompilerMissing: when there is none.
    """
    tried: list[str] = []
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        words = shlex.split(name or "")
        if not words:
            continue
        tried.append(words[0])
        path = shutil.which(words[0])
        if path:
            return path, *words[1:]
    raise CompilerMissing(tried)


@lru_cache(maxsize=8)
def compiler_identity(compiler: tuple[str, ...]) -> str:
    """What tells one compiler and machine from another in cache keys: version and CPU features."""
    try:
        version = subprocess.run(
            [*compiler, "-dumpfullversion", "-dumpmachine"],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        version = ""
    stat = os.stat(compiler[0])
    return f"{' '.join(compiler)} {stat.st_size} {stat.st_mtime_ns} {version} {_cpu()}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf8") as info:
            lines = [line for line in info if line.startswith(("flags", "model name"))]
        return hashlib.sha256("".join(sorted(set(lines))).encode()).hexdigest()[:16]
    except OSError:
        import platform

        return platform.processor() or platform.machine()


def flags_of(options: Options, *, large: bool = False) -> tuple[str, ...]:
    """What the C++ compiler is called with; see `build`."""
    flags = (*FLAGS, "-O1") if large else FLAGS
    if options.deterministic:
        # A product and a sum are one rounding or two, whatever kernel they stand in.
        flags = (*flags, "-ffp-contract=off")
    return flags


def build(
    source: str, options: Options, note: Callable[..., None], *, large: bool = False
) -> Library:
    """Compile `source` or load it from the cache.

    Args:
        source: one translation unit.
        large: it has functions so long that optimising them in full takes minutes and gigabytes.
        options: `cache`, `cache_dir`, `cache_size` and `deterministic` are used.
        note: receives `cache-unusable` events with the reason.

    Raises:
        CompilerMissing: when there is no C++ compiler and the source is not cached.
        BuildFailed: when the compiler refuses the source.
    """
    compiler = find_compiler()
    flags = flags_of(options, large=large)
    key = hashlib.sha256(
        "\0".join([compiler_identity(compiler), " ".join(flags), source]).encode()
    ).hexdigest()[:32]
    folder = _folder(options, note)
    if folder is not None:
        found = _load_cached(folder / f"{key}.so", note)
        if found is not None:
            return found
    with tempfile.TemporaryDirectory(prefix="deepcompile-") as scratch:
        built = Path(scratch) / f"{key}.so"
        _compile((*compiler, *flags), source, built)
        # The mapping outlives the file; an entry of the cache may be trimmed at any moment.
        library = Library(ctypes.CDLL(str(built)), False, str(built))
        if folder is not None:
            _store(built, folder / f"{key}.so", options, note)
        return library


def _compile(command: tuple[str, ...], source: str, target: Path) -> None:
    text = target.with_suffix(".cpp")
    text.write_text(source)
    # A session of its own: what it has started is ended with it.
    with subprocess.Popen(
        [*command, str(text), "-o", str(target), "-lm"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=LONGEST_BUILD)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildFailed(f"it took more than {LONGEST_BUILD} s") from None
            raise
    if process.returncode:
        errors = [line for line in said.splitlines() if "error" in line][:5]
        raise BuildFailed("; ".join(errors) or said[-800:] or "no message")


def _folder(options: Options, note: Callable[..., None]) -> Path | None:
    if not options.cache:
        return None
    try:
        folder = cache_dir(options)
        make_cache_dir(folder)
    except OSError as error:
        _unusable(str(error), note)
        return None
    return folder


@lru_cache(maxsize=64)
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"deepcompile: the kernel cache cannot be used ({reason}); kernels are built anew in each "
        "process. Set DEEPCOMPILE_CACHE_DIR to a folder that can be written.",
        stacklevel=2,
    )


def _unusable(reason: str, note: Callable[..., None]) -> None:
    note("cache-unusable", reason=reason)
    _warn_once(reason)


def _load_cached(path: Path, note: Callable[..., None]) -> Library | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        note("cache-unusable", reason=str(error))
        return None
    body, _, digest = data.rpartition(_TRAILER)
    if not body or hashlib.sha256(body).hexdigest().encode() != digest:
        note("cache-entry-damaged", path=str(path))
        return None
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        note("cache-entry-damaged", path=str(path), reason=str(error))
        return None
    # Others may own the cache: then its entries are used without a trace.
    with contextlib.suppress(OSError):
        os.utime(path)
    return Library(handle, True, str(path))


def _store(built: Path, path: Path, options: Options, note: Callable[..., None]) -> None:
    """Put a built library into the cache, if that is possible."""
    body = built.read_bytes()
    sealed = body + _TRAILER + hashlib.sha256(body).hexdigest().encode()
    partial = path.with_name(f"{path.stem}.{os.getpid()}.{id(built)}.partial")
    try:
        partial.write_bytes(sealed)
        os.replace(partial, path)
        if path.stat().st_mtime_ns % TRIM_EVERY == 0:
            trim(path.parent, options.cache_size)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        _unusable(str(error), note)


_WARNED: set[str] = set()


def warn_no_compiler(reason: str) -> None:
    """Tell once a process that nothing can be built here."""
    if "compiler" in _WARNED:
        return
    _WARNED.add("compiler")
    warnings.warn(f"deepcompile: {reason}; models run in eager.", stacklevel=2)
