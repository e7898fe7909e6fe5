"""Where and with what the numbers are made, and starting every compiler once."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from typing import Any

import torch

import deepcompile
from benchmarks._measure import metadata
from benchmarks.gpu.contenders import COMPILED, STAND_IN, compile_as
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.timing import CudaClock, Timed


def describe(plan: Plan, commit: str | None) -> dict[str, Any]:
    """`benchmarks.metadata`, and the card, its driver and what `torch.clone` reaches on it."""
    found = metadata()
    found["commit"] = commit or found["commit"] or "unknown"
    found["packages"]["deepcompile"] = deepcompile.__version__
    found["packages"]["torch"] = torch.__version__
    found |= {
        "host": found["device"],
        "quick": plan.quick,
        "cpu_smoke": plan.smoke,
        "caches": "empty at the start",
        "stand_ins": STAND_IN if plan.smoke else None,
        "triton_interpret": os.environ.get("TRITON_INTERPRET"),
    }
    if plan.device.type != "cuda":
        return found
    card = torch.cuda.get_device_properties(0)
    return found | {
        "device": card.name,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "capability": f"{card.major}.{card.minor}",
        "memory_bytes": card.total_memory,
        "multiprocessors": card.multi_processor_count,
        "l2_bytes": getattr(card, "L2_cache_size", None),
        "clone_bytes_per_second": _clone_bandwidth(plan),
    }


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run([program, *query], capture_output=True, text=True)
    return done.stdout.partition("\n")[0].strip() or None


def _clone_bandwidth(plan: Plan) -> float:
    """Bytes a second, read and written, of copying one large tensor of bf16."""
    source = torch.randn(plan.elements, device=plan.device, dtype=torch.bfloat16)
    clock = CudaClock()
    timed = Timed(lambda _: source.clone())
    clock.calibrate(timed)
    seconds = statistics.median(clock.cold(timed) for _ in range(20))
    return 2 * source.nbytes / seconds


def warm_up(plan: Plan) -> None:
    """Compile something small with each contender: imports and worker processes are not compiling.

    Failures show later, in the cases.
    """
    for name in COMPILED:
        if not plan.allows(name):
            continue
        x = torch.randn(8, 8, device=plan.device, requires_grad=True)
        function = compile_as(name, torch.nn.functional.gelu, plan)
        try:
            function(x).sum().backward()
        except Exception as error:
            print(f"{name} does not start: {type(error).__name__}: {error}"[:2000])
        torch._dynamo.reset()
