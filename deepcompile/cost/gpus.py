"""What known GPUs can do: for schedules and estimates on a machine without one.

Figures are the makers' data sheets (dense rates); a kernel reaches about nine tenths of the
bandwidth, which is also what `torch.clone` reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFacts:
    """One kind of GPU.

    Attributes:
        name: of the card that the figures are for.
        capability: 90 for sm_90.
        multiprocessors: how many programs run side by side, a few each.
        bandwidth: bytes of memory a second.
        flops: multiplications and additions a second, by dtype ("bf16", "f16", "f32", "f64").
        launch: seconds that a kernel costs beside its work.
    """

    name: str
    capability: int
    multiprocessors: int
    bandwidth: float
    flops: Mapping[str, float]
    launch: float = 3e-6


REACHED = 0.9
"""The part of the bandwidth that a good kernel reaches."""

GPUS: Mapping[int, GpuFacts] = {
    gpu.capability: gpu
    for gpu in (
        GpuFacts("A100 80GB", 80, 108, 2.04e12, {"bf16": 312e12, "f32": 19.5e12, "f64": 19.5e12}),
        GpuFacts("H100 SXM", 90, 132, 3.35e12, {"bf16": 989e12, "f32": 67e12, "f64": 67e12}),
        GpuFacts("B200", 100, 148, 8.0e12, {"bf16": 2250e12, "f32": 75e12, "f64": 37e12}),
    )
}


def estimate(gpu: GpuFacts, moved: float, flops: float = 0.0, dtype: str = "f32") -> float:
    """Seconds of a kernel by the roofline: what its bytes take or its arithmetic, and a launch."""
    rate = gpu.flops.get("bf16" if dtype == "f16" else dtype, gpu.flops["f32"])
    return max(moved / (gpu.bandwidth * REACHED), flops / rate) + gpu.launch
