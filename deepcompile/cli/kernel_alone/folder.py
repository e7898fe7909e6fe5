"""From a kernel of a run directory to a folder that builds and runs it alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

from deepcompile.errors import IRSyntaxError, RunDirError
from deepcompile.inspect.reader import KernelRecord
from deepcompile.inspect.safe_files import read_text
from deepcompile.ir.nest import Check, InRange, Kernel, Load, index_values, operands
from deepcompile.ir.nest_text import parse_kernel

ANY = 8
"""Integers that index nothing are below this."""
_LIBRARY_IMPORT = "from deepcompile.codegen import triton_library as dl"


def write_folder(kernel: KernelRecord, folder: Path) -> list[str]:
    """Write what builds and runs `kernel` into `folder`; the names of the files.

    Raises:
        RunDirError: the run does not have what that takes; the text says what.
        OSError: a file cannot be written.
    """
    launch = kernel.meta.get("launch")
    if not isinstance(launch, dict) or not launch:
        raise RunDirError(
            f"kernel {kernel.name} cannot be run alone: the run does not say how it is called "
            "(it runs as ATen ops, or another version recorded it)"
        )
    try:
        files = _files(kernel, launch)
    except (KeyError, TypeError, ValueError, IRSyntaxError) as error:
        raise RunDirError(f"kernel {kernel.name} cannot be run alone: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(files)


def _files(kernel: KernelRecord, launch: Mapping[str, Any]) -> dict[str, str]:
    nest_text = kernel.read("nest.txt")
    facts = _facts(kernel, launch, parse_kernel(nest_text))
    files = {
        "run.py": (resources.files(__package__) / "run.py").read_text(encoding="utf-8"),
        "nest.txt": nest_text,
        "kernel.json": json.dumps(facts, indent=1) + "\n",
    }
    if facts["kind"].startswith("triton"):
        source = kernel.read("source.py").replace(_LIBRARY_IMPORT, "import triton_library as dl")
        files["kernel.py"] = source
        for name in ("triton_library.py", "triton_interpreter.py"):
            files[name] = _support(kernel, name)
        return files
    support = ["prelude.h", *(["table.h"] if facts["kind"] == "cpp-table" else [])]
    parts = [_support(kernel, name) for name in support] + [kernel.read("source.cpp")]
    files["kernel.cpp"] = "\n".join(parts) + "\n"
    return files


def _support(kernel: KernelRecord, name: str) -> str:
    """What generated code needs beside itself: the run keeps it once."""
    return read_text(kernel.root, kernel.root / "support" / name)


def _facts(kernel: KernelRecord, launch: Mapping[str, Any], nest: Kernel) -> dict[str, Any]:
    meta = kernel.meta
    sizes = {name: int(meta["sizes"][name]) for name in nest.sizes if "table" not in launch["kind"]}
    found: dict[str, Any] = {
        "name": kernel.name,
        "kind": str(launch["kind"]),
        "function": str(launch["function"]),
        "ops": kernel.ops,
        "origins": kernel.origins,
        "sizes": sizes,
        "bytes": int(meta["bytes_read"]) + int(meta["bytes_written"]),
        "seconds": float(meta["seconds"]),
    }
    if found["kind"].endswith("-table"):
        extents = [int(extent) for extent in launch["extents"]]
        found["extents"] = [[extent] for extent in extents]
        found["rows"] = [_table_row(nest, extent) for extent in extents]
    else:
        highs = _highs(nest, sizes)
        found["rows"] = [
            [
                _buffer(b.name, b.dtype, b.role, int(n), highs.get(b.name, ANY))
                for b, n in zip(nest.buffers, launch["elements"], strict=True)
            ]
        ]
    for name in ("workspace", "flags", "functions", "workspaces", "block"):
        if name in launch:
            found[name] = launch[name]
    found["partials"] = int(launch.get("rows", 0))
    return found


def _table_row(nest: Kernel, extent: int) -> list[dict[str, Any]]:
    sizes = dict.fromkeys(nest.sizes, extent)
    return [
        _buffer(b.name, b.dtype, b.role, prod(int(s.evaluate(sizes)) for s in b.shape), ANY)
        for b in nest.buffers
    ]


def _buffer(name: str, dtype: str, role: str, elements: int, high: int) -> dict[str, Any]:
    high = 2 if dtype in ("b1", "u8") else high
    return {"name": name, "dtype": dtype, "role": role, "elements": elements, "high": high}


def _highs(nest: Kernel, sizes: Mapping[str, int]) -> dict[str, int]:
    """For buffers whose values are indices: what all of them must be below."""
    found: dict[str, int] = {}
    for buffer in nest.buffers:
        reached: set[int] = set()
        bounds: list[int] = []
        indexes = False
        for instr in nest.instructions():
            number = getattr(instr, "id", -1)
            if isinstance(instr, Load) and instr.buffer == buffer.name:
                reached.add(number)
            elif isinstance(instr, InRange) and reached & set(index_values(instr.index)):
                bounds.append(int(instr.high.evaluate(sizes)))
                reached.add(number)
            elif isinstance(instr, Load) and reached & set(index_values(instr.index)):
                indexes = True
            elif reached & set(operands(instr)) and not isinstance(instr, Load | Check):
                reached.add(number)
        if bounds:
            found[buffer.name] = max(1, min(bounds))
        elif indexes:
            found[buffer.name] = 1
    return found
