"""The kernels and calls of ATen of a run as a page holds them, and the user's lines they are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepcompile.errors import RunDirError
from deepcompile.inspect.program import ProgramRecord
from deepcompile.inspect.reader import KernelRecord, Run
from deepcompile.inspect.report.states import GraphPages
from deepcompile.inspect.report.text import clean, number

MOST_SOURCE = 64 << 20
"""Characters of sources in a page; those of the cheapest kernels are left out first."""
CHUNK = 1 << 19
"""Characters of sources that are unpacked together."""
MOST_NAMES = 100
"""Nodes that are named of one line of the user's program."""

Row = dict[str, Any]


def kernel_rows(run: Run, programs: Sequence[ProgramRecord]) -> list[Row]:
    """A row for each kernel and each call of ATen, in the order of the programs."""
    kernels = {kernel.name: kernel for kernel in run.kernels}
    rows = []
    for program in programs:
        for step in program.steps:
            kernel = kernels.pop(str(step.get("kernel")), None)
            rows.append(_row(program.graph, step, kernel, program.rates))
    # What no program has: those of runs that ended before, or that are from older versions.
    rows += [_row(str(k.meta.get("graph", "")), k.meta, k, {}) for k in kernels.values()]
    return rows


def _row(
    graph: str, step: Mapping[str, Any], kernel: KernelRecord | None, rates: Mapping[str, Any]
) -> Row:
    read, written = number(step.get("bytes_read")), number(step.get("bytes_written"))
    seconds, operations = number(step.get("seconds")), number(step.get("operations"))
    bandwidth, launch = number(rates.get("bandwidth")), number(rates.get("launch"))
    moving = (read + written) / bandwidth if bandwidth > 0 else 0.0
    working = max(0.0, seconds - launch)
    flops = rates.get("flops")
    rate = number(flops.get("f32")) if isinstance(flops, dict) else 0.0
    if working <= moving * (1 + 1e-9):
        # Memory decides; of arithmetic only a bound from above is known then.
        working = min(moving, operations / rate) if rate > 0 else 0.0
    is_kernel = kernel is not None or step.get("kind") == "kernel"
    name = str(step.get("name", ""))
    origin = step.get("origin")
    return {
        "graph": clean(graph, 200),
        "name": clean(kernel.name if kernel else name, 200),
        "node": clean(_node_name(kernel, name, graph), 200),
        "kind": "kernel" if is_kernel else "extern",
        "step": int(number(step.get("step"))),
        "ops": [clean(op, 200) for op in (kernel.ops if kernel else (step.get("op", ""),)) if op],
        "lines": [clean(line) for line in (kernel.origins if kernel else (origin,)) if line],
        "read": read,
        "written": written,
        "operations": operations,
        "seconds": seconds,
        "moving": moving,
        "computing": working,
        "source": None,
    }


def _node_name(kernel: KernelRecord | None, name: str, graph: str) -> str:
    """What the graph calls it: `k0` of `g0_forward.k0.2`."""
    if kernel is None:
        return name
    return str(kernel.meta.get("name", kernel.name)).removeprefix(f"{graph}.")


def with_sources(rows: Iterable[Row], run: Run) -> tuple[list[list[dict[str, str]]], list[str]]:
    """Files of the kernels, in chunks that are unpacked together, and why some are missing.

    Sets `source` of the rows: the chunk and the place in it.
    """
    kernels = {clean(kernel.name, 200): kernel for kernel in run.kernels}
    chunks: list[list[dict[str, str]]] = []
    problems: list[str] = []
    total, room, left_out = 0, 0, 0
    for row in sorted(rows, key=lambda row: -row["seconds"]):
        kernel = kernels.get(row["name"])
        if kernel is None:
            continue
        try:
            files = {
                clean(file, 200): kernel.read(file)
                for file in kernel.files
                if file.endswith((".cpp", ".py", ".txt"))
            }
        except RunDirError as error:
            problems.append(str(error))
            continue
        length = sum(map(len, files.values()))
        if total + length > MOST_SOURCE:
            left_out += 1
            continue
        total += length
        if not chunks or length > room:
            chunks.append([])
            room = CHUNK
        room -= length
        row["source"] = [len(chunks) - 1, len(chunks[-1])]
        chunks[-1].append(
            {
                file: "\n".join(clean(line) for line in text.split("\n"))
                for file, text in files.items()
            }
        )
    if left_out:
        problems.append(f"sources of {left_out} kernels are left out: together they are too long")
    return chunks, problems


def line_rows(graphs: Iterable[GraphPages], rows: Sequence[Row]) -> list[Row]:
    """A row for each line of the user's program: the nodes it made, kernels it is part of."""
    found: dict[str, Row] = {}

    def entry(line: str) -> Row:
        return found.setdefault(
            line, {"line": line, "nodes": [], "count": 0, "kernels": [], "seconds": 0.0}
        )

    for place, graph in enumerate(graphs):
        for node in graph.input.nodes:
            if node.origin:
                row = entry(clean(node.origin))
                row["count"] += 1
                if len(row["nodes"]) < MOST_NAMES:
                    row["nodes"].append([place, clean(node.name, 200)])
    for number_, kernel in enumerate(rows):
        for line in kernel["lines"]:
            row = entry(line)
            row["kernels"].append(number_)
            row["seconds"] += kernel["seconds"]
    return sorted(found.values(), key=lambda row: -row["seconds"])
