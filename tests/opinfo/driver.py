"""Sweeps over torch's operator database: compiled by us, compared with eager.

    python -m tests.opinfo.driver --samples 2 --dtype float32 --resume results.jsonl --shard 0/4

Cases run in worker processes, so that a crash costs one case; a results file that exists is gone on
with. At the end the counts are printed, and the operators that are not compiled as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.opinfo.cases import EXCLUDED, Case, all_cases

Row = dict[str, Any]
KINDS = ("native", "extern", "fallback", "graph break", "untraceable", "error")
BATCH = 60


@dataclass(frozen=True)
class Settings:
    """How cases are run: samples each (0 for all), seconds each, options of the compiler."""

    samples: int = 2
    timeout: float = 120.0
    threads: int = 2
    options: dict[str, Any] | None = None


def sweep(cases: Iterable[Case], settings: Settings, path: Path | None = None) -> list[Row]:
    """Results of all cases, those already in `path` included; new ones are appended to it."""
    rows = _read(path)
    known = {(row["op"], row["dtype"], row["mode"]) for row in rows}
    waiting = [case for case in cases if (case.op, case.dtype, case.mode) not in known]
    while waiting:
        batch = waiting[:BATCH]
        done = 0
        for row in _run_batch(batch, settings):
            done += 1
            rows.append(row)
            if path is not None:
                with path.open("a", encoding="utf8") as file:
                    file.write(json.dumps(row) + "\n")
            _progress(row, len(waiting) - done)
        waiting = waiting[max(done, 1) :]
    return rows


def _progress(row: Row, left: int) -> None:
    if row["status"] in ("ok", "skipped"):
        return
    problem = (row.get("problems") or [row.get("reason", "")])[0]
    name = f"{row['op']} {row['dtype']} {row['mode']}"
    print(
        f"{left:5d} left  {row['status']:8s} {name}: {problem[:160]}", file=sys.stderr, flush=True
    )


def _read(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines() if line]


def _run_batch(batch: list[Case], settings: Settings) -> Iterable[Row]:
    """Rows of as many cases as one worker gets through; a crash ends the batch with its row."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.opinfo.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    head = asdict(settings)
    try:
        worker.stdin.write(json.dumps(head) + "\n")
        worker.stdin.writelines(json.dumps(asdict(case)) + "\n" for case in batch)
        worker.stdin.close()
    except BrokenPipeError:
        pass
    running: Case | None = None
    cases = iter(batch)
    selector = selectors.DefaultSelector()
    selector.register(worker.stdout, selectors.EVENT_READ)
    try:
        while True:
            if not selector.select(settings.timeout + 60):
                worker.kill()
                if running is not None:
                    yield _lost(running, "timeout", "the worker hung")
                return
            line = worker.stdout.readline()
            if not line:
                break
            row = json.loads(line)
            if "start" in row:
                running = next(cases)
                continue
            running = None
            yield row
        code = worker.wait()
        if running is not None:
            yield _lost(running, "crash", f"the process ended with {code}")
        elif code:
            first = next(cases, None)
            if first is not None:
                yield _lost(first, "crash", f"the worker did not start: {code}")
    finally:
        worker.kill()
        worker.wait()


def _lost(case: Case, status: str, reason: str) -> Row:
    return {**asdict(case), "status": status, "kind": "error", "problems": [reason]}


def report(rows: list[Row]) -> str:
    """Counts by dtype and mode, then the operators that are not native, by cause."""
    lines = []
    head = f"{'dtype':10s}{'mode':9s}{'ops':>5s}" + "".join(f"{kind:>13s}" for kind in KINDS)
    lines.append(head + f"{'wrong':>8s}{'native %':>10s}")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], row["mode"]), []).append(row)
    for (dtype, mode), members in groups.items():
        counts = Counter(row["kind"] for row in members)
        wrong = sum(row["status"] not in ("ok", "skipped") for row in members)
        share = 100 * counts["native"] / max(len(members), 1)
        lines.append(
            f"{dtype:10s}{mode:9s}{len(members):5d}"
            + "".join(f"{counts[kind]:13d}" for kind in KINDS)
            + f"{wrong:8d}{share:10.1f}"
        )
    for (dtype, mode), members in groups.items():
        lines += ["", f"-- {dtype} {mode}"]
        for kind in KINDS[1:]:
            causes: dict[str, list[str]] = {}
            for row in members:
                if row["kind"] == kind:
                    causes.setdefault(_cause(row), []).append(row["op"])
            for cause, names in sorted(causes.items(), key=lambda item: (-len(item[1]), item[0])):
                lines.append(f"{kind}: {cause}: {', '.join(names)}")
        for row in members:
            if row["status"] not in ("ok", "skipped"):
                lines += [f"{row['status']}: {row['op']}: {p}" for p in row.get("problems", [])[:1]]
    return "\n".join(lines)


def _cause(row: Row) -> str:
    if row["kind"] == "extern":
        return ", ".join(row.get("externs", []))
    return str(row.get("reason") or (row.get("problems") or [""])[0])[:160]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo.driver", description=__doc__)
    parser.add_argument("--samples", type=int, default=2, help="samples an operator; 0 for all")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--mode", action="append", choices=("static", "dynamic"))
    parser.add_argument("--ops", nargs="*", help="only operators with one of these in the name")
    parser.add_argument("--exact", action="store_true", help="--ops are whole names")
    parser.add_argument("--resume", type=Path, help="a file of results to go on with")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th case, from the i-th")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a case may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", help="a pipeline instead of the default one")
    parser.add_argument(
        "--triton", action="store_true", help="Triton kernels, in its interpreter where no GPU is"
    )
    parser.add_argument("--excluded", action="store_true", help="list what is not compared and why")
    given = parser.parse_args(arguments)
    if given.excluded:
        print("\n".join(f"{name}: {reason}" for name, reason in sorted(EXCLUDED.items())))
        return 0
    start = time.perf_counter()
    cases = all_cases(given.dtype or ["float32", "bfloat16"], given.mode or ["static", "dynamic"])
    if given.ops:
        match = (lambda part, op: part == op) if given.exact else (lambda part, op: part in op)
        cases = [case for case in cases if any(match(part, case.op) for part in given.ops)]
    number, of = map(int, given.shard.split("/"))
    options = {"passes": given.passes} if given.passes else {}
    if given.triton:
        options["codegen"] = "triton"
        os.environ["TRITON_INTERPRET"] = "1"
    settings = Settings(given.samples, given.timeout, given.threads, options)
    rows = sweep(cases[number::of], settings, given.resume)
    wanted = set(cases[number::of])
    rows = [row for row in rows if Case(row["op"], row["dtype"], row["mode"]) in wanted]
    print(report(rows))
    print(f"\n{len(rows)} cases in {time.perf_counter() - start:.0f} s")
    return int(any(row["status"] not in ("ok", "skipped") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
