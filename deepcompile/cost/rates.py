"""How fast a device computes and moves bytes, for estimates of what an operator costs.

Tables only: nothing here is measured, so that every rank and every run decides alike. See
`cost.calibration` for rates that a user had measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from .gpus import GPUS, REACHED, GpuFacts


@dataclass(frozen=True)
class Rates:
    """Of one device.

    Attributes:
        name: for reports.
        bandwidth: bytes of memory a second that a kernel reaches.
        launch: seconds that a kernel costs beside its work.
        flops: operations a second that a matrix product reaches, by dtype; "f32" always.
        link: bytes a second between the device's memory and the host's.
        overlaps: whether copies over the link run beside kernels.
        source: "table", or "calibrated" with the day on which they were measured.
    """

    name: str
    bandwidth: float
    launch: float
    flops: Mapping[str, float] = field(default_factory=dict)
    link: float = 0.0
    overlaps: bool = False
    source: str = "table"

    @property
    def fingerprint(self) -> str:
        """Equal for equal numbers: what processes that must plan alike can compare."""
        flops = sorted(self.flops.items())
        numbers = (self.bandwidth, self.launch, flops, self.link, self.overlaps)
        return hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]

    def seconds(self, moved: float, operations: float = 0.0, dtype: str = "f32") -> float:
        """By the roofline: what the bytes or the operations take, whichever is longer."""
        if not moved and not operations:
            return 0.0
        rate = self.flops.get("bf16" if dtype == "f16" else dtype, self.flops["f32"])
        return max(moved / self.bandwidth, operations / rate) + self.launch


GEMM_REACHED = 0.7
"""The part of the data sheet's rate that matrix products of training shapes reach."""

#: A core with 256-bit vectors, of which two multiply-adds start in each cycle, at 2.5 GHz.
_CORE_FLOPS = 2.5e9 * 8 * 2 * 2
_CPU_BANDWIDTH = 2e10  # of a socket's memory; one core reaches about half
_CPU_LINK = 1e10  # a copy from memory to memory


def rates_of_cpu(threads: int) -> Rates:
    """A CPU of which `threads` cores work."""
    flops = _CORE_FLOPS * threads * GEMM_REACHED
    bandwidth = min(threads, 2) * _CPU_BANDWIDTH / 2
    rates = {"f32": flops, "f64": flops / 2, "bf16": flops}
    return Rates(f"CPU, {threads} threads", bandwidth, 2e-6, rates, _CPU_LINK)


def rates_of_gpu(gpu: GpuFacts) -> Rates:
    """A GPU of the table, at what kernels reach of its data sheet."""
    flops = {dtype: rate * GEMM_REACHED for dtype, rate in gpu.flops.items()}
    return Rates(gpu.name, gpu.bandwidth * REACHED, gpu.launch, flops, _PCIE, True)


_PCIE = 2.5e10  # bytes a second one way over PCIe 4 x16, pinned memory, as measured by many


def rates_of(device: str, capability: int | None, threads: int) -> Rates:
    """The device that a graph is compiled for; an unknown GPU counts as the nearest older one."""
    if device != "cuda":
        return rates_of_cpu(threads)
    older = [known for known in GPUS if capability is not None and known <= capability]
    return rates_of_gpu(GPUS[max(older) if older else min(GPUS)])
