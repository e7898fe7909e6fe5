"""Writes a run directory: what one process compiled, as files that need no torch to read.

    ROOT/latest                       name of the newest run, as text; of ranks, that of rank 0
    ROOT/<utc>-<name>-<pid>/
        run.json                      schema, versions, argv, options, pipeline, status, counts
        index.md                      everything below, in the order it happened
        events.jsonl                  fallbacks, rejected fusions, failures; a forked child
                                      writes events.<pid>.r<rank>.jsonl
        graphs/<graph>/NNN_<pass>.ir  000 is the state before the first pass; then changed states
        graphs/<graph>/NNN_<pass>.json
        kernels/<kernel>/             source.cpp or source.py, nest.txt, meta.json
        support/                      what kernels need beside their sources, to be built again
        programs/<graph>.json         steps with bytes and modelled seconds, and the memory held
        memory/<graph>.json           what a memory budget decided
        sharding/<graph>.json         placements on a mesh; model.json: as planned for all graphs

A directory is never reused and nothing in it is overwritten but `run.json`. Recording never stops a
compile: on the first error of the file system one warning is given and the run goes on unrecorded.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

SCHEMA = 1
_P = ParamSpec("_P")
_R = TypeVar("_R")
_COUNTED = ("graphs", "kernels", "fallbacks", "events")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


def _recording(
    default: _R,
) -> Callable[[Callable[Concatenate[RunDir, _P], _R]], Callable[Concatenate[RunDir, _P], _R]]:
    """Turn a full or read-only disk, or data that is no JSON, into one warning and `default`."""

    def decorate(
        method: Callable[Concatenate[RunDir, _P], _R],
    ) -> Callable[Concatenate[RunDir, _P], _R]:
        @functools.wraps(method)
        def guarded(self: RunDir, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            if self.broken:
                return default
            try:
                with self._lock:
                    return method(self, *args, **kwargs)
            except (OSError, ValueError, TypeError, RecursionError) as error:
                self._give_up(error)
                return default

        return guarded

    return decorate


class RunDir:
    """One run being recorded. Safe to call from several threads and after a fork."""

    def __init__(self, path: Path, info: dict[str, Any], rank: int) -> None:
        self.path = path
        self.broken = False
        self._info = info
        self._rank = rank
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._graphs: set[str] = set()
        self._counts: Counter[str] = Counter()

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        *,
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
        pipeline: str = "",
        versions: Mapping[str, str] | None = None,
        rank: int | None = None,
    ) -> RunDir:
        """A new run under `root`.

        Never raises: an unusable `root` gives one warning and a run that records nothing.
        """
        if rank is None:
            rank = int(os.environ["RANK"]) if os.environ.get("RANK", "").isdigit() else 0
        now = datetime.now(UTC)
        info = {
            "schema": SCHEMA,
            "name": name or _script_name(),
            "status": "running",
            "started": now.isoformat(timespec="milliseconds"),
            "pid": os.getpid(),
            "host": platform.node(),
            "rank": rank,
            "argv": sys.argv,
            "cwd": _cwd(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": dict(versions or {}),
            "options": dict(options or {}),
            "environment": {k: v for k, v in os.environ.items() if k.startswith("DEEPCOMPILE_")},
            "pipeline": pipeline,
        }
        suffix = f"-r{rank}" if rank else ""
        stem = f"{now:%Y%m%dT%H%M%S}-{_safe(str(info['name']))}-{os.getpid()}{suffix}"
        run = cls(Path(root) / stem, info, rank)
        run._make(stem)
        return run

    @_recording(None)
    def _make(self, stem: str) -> None:
        root = self.path.parent
        root.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 10_000):
            self.path = root / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                self.path.mkdir()
                break
            except FileExistsError:
                continue
        self._write_json(self.path / "run.json", self._info)
        self._append(self.path / "index.md", f"# {self.path.name}\n\n")
        if self._rank == 0:
            _replace(root / "latest", self.path.name + "\n")

    @property
    def status(self) -> str:
        """`running`, or how the run ended."""
        return str(self._info["status"])

    def has_graph(self, graph: str) -> bool:
        """Whether a state of this graph has been kept."""
        return graph in self._graphs

    def unique_graph_name(self, base: str) -> str:
        """`base`, or `base.2`, `base.3`, … when graphs of that name are already here."""
        with self._lock:
            name, count = base, 1
            while name in self._graphs:
                count += 1
                name = f"{base}.{count}"
            return name

    @_recording(None)
    def graph_state(
        self,
        graph: str,
        index: int,
        pass_name: str,
        text: str | None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the state of `graph` after its pass number `index`; 0 is the state before the first.

        `text` is None when the pass changed nothing: then only `meta` is written.
        """
        folder = self.path / "graphs" / _safe(graph)
        folder.mkdir(parents=True, exist_ok=True)
        stem = _free(folder, f"{index:03d}_{_safe(pass_name)}", ".json")
        record = {"schema": SCHEMA, "graph": graph, "index": index, "name": pass_name}
        record |= {"time": time.time(), "text": text is not None} | dict(meta or {})
        if text is not None:
            _create(folder / f"{stem}.ir", text if text.endswith("\n") else text + "\n")
        _create(folder / f"{stem}.json", _dumps(record, indent=1) + "\n")
        if graph not in self._graphs:
            self._graphs.add(graph)
            self._counts["graphs"] += 1
            self._append(self.path / "index.md", f"\n## graph {graph}\n\n")
        where = f"graphs/{_safe(graph)}/{stem}.ir" if text is not None else None
        self._append(self.path / "index.md", _state_line(index, pass_name, where, meta or {}))

    @_recording("")
    def kernel(self, name: str, files: Mapping[str, str], meta: Mapping[str, Any]) -> str:
        """Keep a kernel's files (`source.cpp`, `nest.txt`, …) and `meta.json`; its name in the run.

        `meta` says at least `origins` (user `file:line` texts), `ops` (the ops it came from) and
        `graph`. A second kernel of the same name gets a number.
        """
        kernels = self.path / "kernels"
        kernels.mkdir(exist_ok=True)
        kept, count = _safe(name), 1
        while True:
            try:
                (kernels / kept).mkdir()
                break
            except FileExistsError:
                count += 1
                kept = f"{_safe(name)}.{count}"
        for file, text in files.items():
            _create(kernels / kept / _safe(file), text)
        record = {"schema": SCHEMA, "name": name} | dict(meta)
        _create(kernels / kept / "meta.json", _dumps(record, indent=1) + "\n")
        self._counts["kernels"] += 1
        origins = ", ".join(map(str, meta.get("origins", ()))) or "?"
        ops = ", ".join(map(str, meta.get("ops", ())))
        self._append(
            self.path / "index.md", f"- kernel [{kept}](kernels/{kept}/) from {origins}: {ops}\n"
        )
        return kept

    @_recording(None)
    def support(self, name: str, text: str) -> None:
        """Keep a text that sources of kernels need beside them: `support/<name>`, once."""
        file = self.path / "support" / _safe(name)
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            _create(file, text)

    @_recording(None)
    def program(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep the steps of a graph's program and what they cost: `programs/<name>.json`."""
        self._document("programs", "program", name, facts)

    @_recording(None)
    def memory(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what a memory budget decided for a graph, as a plan file: `memory/<name>.json`."""
        self._document("memory", "memory plan", name, {"plans": [facts]})

    @_recording(None)
    def sharding(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep the placements of a graph, or of a whole model: `sharding/<name>.json`."""
        self._document("sharding", "placements", name, document)

    def _document(self, subject: str, title: str, name: str, document: Mapping[str, Any]) -> None:
        folder = self.path / subject
        folder.mkdir(exist_ok=True)
        file = _free(folder, _safe(name), ".json") + ".json"
        _create(folder / file, _dumps({"schema": SCHEMA, **document}, indent=1) + "\n")
        self._append(self.path / "index.md", f"- {title} [{name}]({subject}/{file})\n")

    @_recording(None)
    def event(self, kind: str, /, **fields: Any) -> None:
        """Add one line to the events, with time, pid and rank."""
        pid = os.getpid()
        own = pid == self._pid
        name = "events.jsonl" if own else f"events.{pid}.r{self._rank}.jsonl"
        record = {"time": time.time(), "pid": pid, "rank": self._rank, "kind": kind} | fields
        self._append(self.path / name, _dumps(record) + "\n")
        if own:
            self._counts["events"] += 1
            self._counts["fallbacks"] += kind == "fallback"
        if kind in ("fallback", "pass-failed", "graph-break"):
            detail = fields.get("reason") or fields.get("error") or ""
            where = fields.get("origin") or fields.get("graph") or ""
            line = " ".join(f"- **{kind}** {where} {detail}".split())
            self._append(self.path / "index.md", line + "\n")

    @_recording(None)
    def finish(self, status: str = "ok", /, **fields: Any) -> None:
        """Write how the run ended, and counts, into `run.json`; may be called again with more."""
        if os.getpid() != self._pid:
            return
        ended = datetime.now(UTC).isoformat(timespec="milliseconds")
        counts = {name: self._counts[name] for name in _COUNTED}
        self._info |= {"status": status, "ended": ended, "counts": counts, **fields}
        self._write_json(self.path / "run.json", self._info)

    def _give_up(self, error: Exception) -> None:
        self.broken = True
        warnings.warn(
            f"deepcompile: recording into {self.path} stopped: {type(error).__name__}: {error}. "
            "The compile goes on; name another run_dir to record it.",
            stacklevel=3,
        )

    def _append(self, path: Path, text: str) -> None:
        # One write of one buffer in append mode: lines of concurrent writers do not mix.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            data = text.encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(handle, data) :]
        finally:
            os.close(handle)

    def _write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        _replace(path, _dumps(value, indent=1) + "\n")


@functools.cache
def _open_run(root: str, pid: int) -> list[RunDir]:
    return []


def process_run(root: str | os.PathLike[str], **fields: Any) -> RunDir:
    """The run of this process under `root`; the first call creates it with `fields`.

    All graphs that one process compiles into one root share a run, which ends with the process.
    """
    # The program may go to another directory before it ends.
    place = os.path.abspath(root)
    holder = _open_run(place, os.getpid())
    if not holder:
        holder.append(RunDir.create(place, **fields))
        atexit.register(_finish_at_exit, holder[0])
    return holder[0]


def open_run(root: str | os.PathLike[str]) -> RunDir | None:
    """The run that this process has under `root` already."""
    holder = _open_run(os.path.abspath(root), os.getpid())
    return holder[0] if holder else None


def _finish_at_exit(run: RunDir) -> None:
    if run.status != "running":
        return
    # Python keeps the exception that ended the process here, before it runs exit handlers.
    error = getattr(sys, "last_value", None)
    if error is None:
        run.finish("ok")
    else:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.finish(status, error=f"{type(error).__name__}: {error}")


def _state_line(index: int, name: str, where: str | None, meta: Mapping[str, Any]) -> str:
    title = f"{index:03d} {name}"
    parts = [f"[{title}]({where})" if where else title, str(meta.get("status", ""))]
    if meta.get("ms"):
        parts.append(f"{meta['ms']:.1f} ms")
    delta = meta.get("op_delta") or {}
    if delta:
        more = sum(c for c in delta.values() if c > 0)
        fewer = -sum(c for c in delta.values() if c < 0)
        parts.append(f"ops +{more} -{fewer}")
    if meta.get("reason"):
        parts.append(str(meta["reason"]).splitlines()[0])
    return "- " + ", ".join(part for part in parts if part) + "\n"


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it; what is neither number, text nor container becomes its text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(v) for v in value), key=str)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value)


def _safe(name: str) -> str:
    return _UNSAFE.sub("_", name).strip(".")[:120] or "_"


def _free(folder: Path, stem: str, suffix: str) -> str:
    """`stem`, numbered when a file of it exists: nothing is overwritten."""
    candidate, count = stem, 1
    while (folder / f"{candidate}{suffix}").exists():
        count += 1
        candidate = f"{stem}.{count}"
    return candidate


def _create(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _script_name() -> str:
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("python")
    # A package run with -m is its __main__.py.
    stem = script.parent.name if script.stem == "__main__" else script.stem
    return stem if stem and stem != "-c" else "python"


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory was removed under us
        return ""
