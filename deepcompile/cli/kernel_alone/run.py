"""Build the kernel of this folder, run it on seeded inputs, check it and time it.

    python run.py                 run it once: what each result is
    python run.py --time          time it, beside a copy of as many bytes
    python run.py --check         compare it with the meaning of nest.txt (needs deepcompile)

Needs torch, and a C++ compiler or Triton; nothing else. kernel.json says how it is called.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FACTS: dict[str, Any] = json.loads((HERE / "kernel.json").read_text(encoding="utf-8"))
UNIT = 16
FLUSH = 256 << 20

Run = Callable[[], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of a kernel of C++")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    is_triton = FACTS["kind"].startswith("triton")
    if is_triton:
        prepare_interpreter()
    import torch

    torch.manual_seed(given.seed)
    if given.threads:
        torch.set_num_threads(given.threads)
    device = "cuda" if is_triton and torch.cuda.is_available() else "cpu"
    tensors = [[make_input(buffer, device) for buffer in row] for row in FACTS["rows"]]
    before = [[tensor.clone() for tensor in row] for row in tensors]
    run = (triton_call if is_triton else cpp_call)(tensors, device)
    run()
    found: dict[str, Any] = {"kernel": FACTS["name"], "device": device, "seed": given.seed}
    found["results"] = results(tensors)
    if given.check:
        found["check"] = check(before, tensors)
    if given.time:
        found |= timed(run, device, given.rounds)
    say(found, given.json)
    return 1 if found.get("check", {}).get("differs") else 0


def make_input(buffer: dict[str, Any], device: str) -> Any:
    """Seeded numbers: floats are normal, integers below what they index, results begin as 0."""
    import torch

    dtypes = {
        "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
        "f8e4m3": torch.float8_e4m3fn, "i64": torch.int64, "i32": torch.int32, "i16": torch.int16,
        "i8": torch.int8, "u8": torch.uint8, "b1": torch.bool,
    }  # fmt: skip
    dtype, count = dtypes[buffer["dtype"]], buffer["elements"]
    if buffer["role"] == "out":
        made = torch.zeros(count, dtype=torch.float32).to(dtype)
    elif dtype.is_floating_point:
        made = torch.randn(count).to(dtype)
    else:
        made = torch.randint(0, max(1, buffer["high"]), (count,)).to(dtype)
    return made.to(device)


# -- C++ -------------------------------------------------------------------------------------------


def cpp_call(tensors: list[list[Any]], device: str) -> Run:
    """The kernel compiled, as a call on these tensors."""
    import torch

    folder = tempfile.mkdtemp(prefix="kernel-")
    words = next(
        (w for w in map(shlex.split, (os.environ.get("CXX", ""), "g++", "c++", "clang++"))
         if w and shutil.which(w[0])), None,
    )  # fmt: skip
    if words is None:
        sys.exit("no C++ compiler: set CXX, or install g++")
    library = f"{folder}/kernel.so"
    flags = shlex.split(FACTS["flags"])
    subprocess.run([*words, *flags, str(HERE / "kernel.cpp"), "-o", library, "-lm"], check=True)
    handle = ctypes.CDLL(library)
    shutil.rmtree(folder)
    share_threads(handle)
    function = getattr(handle, FACTS["function"])
    function.restype = None
    threads = ctypes.c_int64(torch.get_num_threads())
    flat = [tensor for row in tensors for tensor in row]
    pointers = (ctypes.c_void_p * len(flat))(*(tensor.data_ptr() for tensor in flat))
    if FACTS["kind"] == "cpp-table":
        numbers = table([row[0] for row in FACTS["extents"]], len(tensors[0]))
        array = (ctypes.c_int64 * len(numbers))(*numbers)
        return keeping(lambda: function(pointers, array, threads), flat)
    sizes = (ctypes.c_int64 * max(1, len(FACTS["sizes"])))(*FACTS["sizes"].values())
    # Each thread has a part of it, each at a multiple of 64 bytes.
    space = torch.zeros(FACTS["workspace"] * threads.value + 128, dtype=torch.uint8)
    workspace = ctypes.c_void_p(-(-space.data_ptr() // 64) * 64)
    failed = ctypes.c_int()

    def call() -> None:
        function(pointers, sizes, workspace, threads, ctypes.byref(failed))
        if failed.value:
            sys.exit("the kernel says that an index is out of range")

    return keeping(call, [*flat, space])


def keeping(call: Run, tensors: list[Any]) -> Run:
    """`call`, with the memory that it knows by address only."""
    return lambda: call() if tensors else None


def share_threads(handle: Any) -> None:
    """Give the kernel the OpenMP runtime that torch has loaded; without one it runs alone."""
    names: list[str] = []
    if os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps", encoding="utf-8") as maps:
            names = [line.split()[-1] for line in maps if "omp" in line and ".so" in line]
    for name in dict.fromkeys(names):
        try:
            library = ctypes.CDLL(name)
            entries = [
                ctypes.cast(getattr(library, entry), ctypes.c_void_p)
                for entry in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            ]
        except (OSError, AttributeError):
            continue
        handle.deepcompile_threads(*entries)
        return


def table(extents: list[int], buffers: int) -> list[int]:
    """What a kernel over a table of rows reads: counts, starts, extents, slots and offsets."""
    starts, units = [], 0
    for extent in extents:
        starts.append(units)
        units += -(-extent // UNIT)
    slots = [n for slot in range(len(extents) * buffers) for n in (slot, 0)]
    return [len(extents), units, *starts, units, *extents, *slots]


# -- Triton ----------------------------------------------------------------------------------------


def prepare_interpreter() -> None:
    """Without a GPU, Triton runs interpreted: right numbers, and no speed to speak of."""
    import torch

    sys.path.insert(0, str(HERE))
    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"
    load("triton_interpreter").install()


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def triton_call(tensors: list[list[Any]], device: str) -> Run:
    """The launches of the kernel on these tensors."""
    import torch

    module = load("kernel")
    if FACTS["kind"] == "triton-table":
        return table_launch(module, tensors, device)
    row = FACTS["rows"][0]
    named: dict[str, Any] = {b["name"]: t for b, t in zip(row, tensors[0], strict=True)}
    named |= FACTS["sizes"]
    for space in FACTS["workspaces"]:
        named[space["name"]] = make_input({**space, "role": "out"}, device)
    failed = named["failed"] = torch.zeros(1, dtype=torch.int32, device=device)
    named["rows"] = FACTS["partials"]
    launches = []
    for function in FACTS["functions"]:
        options = {"num_warps": function["warps"]}
        if function["stages"] is not None:
            options["num_stages"] = function["stages"]
        arguments = [named[name] for name in function["arguments"]]
        launches.append(
            (getattr(module, function["name"]), function["programs"], arguments, options)
        )

    def call() -> None:
        for kernel, programs, arguments, options in launches:
            if programs:
                kernel[(programs,)](*arguments, **options)

    call()
    if int(failed):
        sys.exit("the kernel says that an index is out of range")
    return call


def table_launch(module: Any, tensors: list[list[Any]], device: str) -> Run:
    """Of a kernel over a table of rows: addresses of all tensors, and chunks of rows."""
    import torch

    block = FACTS["block"]
    places = [tensor.data_ptr() for row in tensors for tensor in row]
    chunks = [
        number
        for row, (extent,) in enumerate(FACTS["extents"])
        for first in range(0, extent, block)
        for number in (row, first, extent)
    ]
    given = [torch.tensor(each, dtype=torch.int64, device=device) for each in (places, chunks)]
    kernel = getattr(module, FACTS["functions"][0]["name"])
    warps = FACTS["functions"][0]["warps"]
    return keeping(lambda: kernel[(len(chunks) // 3,)](*given, num_warps=warps), [tensors])


# -- what is said ----------------------------------------------------------------------------------


def results(tensors: list[list[Any]]) -> list[dict[str, Any]]:
    """Mean, largest magnitude and NaNs of each result of the first row."""
    import torch

    found = []
    for buffer, tensor in zip(FACTS["rows"][0], tensors[0], strict=True):
        if buffer["role"] == "in":
            continue
        values = tensor.double()
        whole = values[torch.isfinite(values)]
        found.append(
            {
                "name": buffer["name"],
                "elements": tensor.numel(),
                "mean": float(whole.mean()) if whole.numel() else 0.0,
                "largest": float(whole.abs().max()) if whole.numel() else 0.0,
                "not finite": int(tensor.numel() - whole.numel()),
            }
        )
    return found


def check(before: list[list[Any]], after: list[list[Any]]) -> dict[str, Any]:
    """The largest difference from what nest.txt means."""
    import torch

    try:
        from deepcompile.ir.interpret import interpret
        from deepcompile.ir.nest_text import parse_kernel
    except ImportError:
        return {"skipped": "deepcompile cannot be imported"}
    nest = parse_kernel((HERE / "nest.txt").read_text(encoding="utf-8"))
    worst = {"difference": 0.0, "bound": 0.0, "differs": False}
    for row, (start, made) in enumerate(zip(before, after, strict=True)):
        tensors = {b.name: t.cpu() for b, t in zip(nest.buffers, start, strict=True)}
        sizes = FACTS["sizes"]
        if "table" in FACTS["kind"]:
            sizes = dict.fromkeys(nest.sizes, FACTS["extents"][row][0])
        interpret(nest, tensors, sizes)
        for buffer, result in zip(nest.buffers, made, strict=True):
            if buffer.role == "in":
                continue
            wanted, got = tensors[buffer.name].double(), result.cpu().double()
            coarse = {"bf16": 1.6e-2, "f16": 2e-3, "f8e4m3": 0.13, "f64": 1e-9}
            bound = coarse.get(buffer.dtype, 2e-5)
            whole = wanted[torch.isfinite(wanted)]
            scale = float(whole.abs().max()) if whole.numel() else 0.0
            off = (wanted - got).abs()
            off[(wanted == got) | (wanted.isnan() & got.isnan())] = 0.0
            # Long sums differ by their order: by the largest result, not by each one.
            limit = bound * max(1.0, scale)
            largest = float(off.max()) if off.numel() else 0.0
            if not largest <= limit:
                worst["differs"] = True
            if not largest <= worst["difference"]:
                worst |= {"difference": largest, "bound": limit}
    return worst


def timed(run: Run, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of a run, and of a copy of as many bytes."""
    import torch

    if device == "cpu" and FACTS["kind"].startswith("triton"):
        return {"untimed": "Triton's interpreter says nothing about a GPU's time"}
    moved = FACTS["bytes"]
    source = torch.ones(max(1, moved // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = measure(run, device, rounds)
    copy = measure(lambda: target.copy_(source), device, rounds)
    return {
        "seconds": seconds,
        "copy_seconds": copy,
        "bytes": moved,
        "bytes_per_second": moved / seconds,
        "roofline_share": copy / seconds,
        "modelled_seconds": FACTS["seconds"],
        "threads": torch.get_num_threads() if device == "cpu" else 0,
    }


def measure(work: Callable[[], Any], device: str, rounds: int) -> float:
    """The median of rounds; on a GPU each finds an empty cache."""
    import torch

    if device == "cuda":
        flush = torch.empty(FLUSH, dtype=torch.uint8, device=device)
        found = []
        work()
        for _ in range(rounds):
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(found)
    work()
    start = time.perf_counter()
    work()
    calls = max(1, min(10_000, int(2e-3 / max(time.perf_counter() - start, 1e-7))))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def say(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"kernel {found['kernel']} on {found['device']}, seed {found['seed']}")
    for result in found["results"]:
        print("  " + ", ".join(f"{name} {value}" for name, value in result.items()))
    if "check" in found:
        print(f"  against nest.txt: {found['check']}")
    if "untimed" in found:
        print(f"  not timed: {found['untimed']}")
    if "seconds" in found:
        rate, share = found["bytes_per_second"] / 1e9, found["roofline_share"]
        print(f"  {found['seconds'] * 1e6:.2f} us, {rate:.2f} GB/s: {share:.0%} of the rate of")
        print(f"  a copy of as many bytes, which takes {found['copy_seconds'] * 1e6:.2f} us")


if __name__ == "__main__":
    sys.exit(main())
