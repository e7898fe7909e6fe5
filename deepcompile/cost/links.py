"""How long collectives of a mesh take: alpha (a start) and beta (bytes a second) of each axis.

Tables only, as in `cost.rates`: every rank decides alike. Rings, as NCCL and gloo use for tensors
that are worth thinking about; sources of the figures stand beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepcompile.ir.mesh import Mesh


@dataclass(frozen=True)
class Link:
    """Between neighbours on one axis of a mesh.

    Attributes:
        name: for reports.
        alpha: seconds that a collective takes whatever its size, for each of its steps.
        beta: bytes a second that leave one rank.
        start: seconds that launching one costs.
    """

    name: str
    alpha: float
    beta: float
    start: float

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until every rank has a tensor of `size` bytes of which it had a part."""
        return self._ring(size * (ranks - 1) / ranks, ranks - 1)

    def reduce_scatter(self, size: float, ranks: int) -> float:
        """Seconds until every rank has its part of the sum of tensors of `size` bytes."""
        return self._ring(size * (ranks - 1) / ranks, ranks - 1)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the sum of tensors of `size` bytes."""
        return self._ring(2 * size * (ranks - 1) / ranks, 2 * (ranks - 1))

    def all_to_all(self, size: float, ranks: int) -> float:
        """Seconds until every rank has its parts of tensors of which each rank has `size` bytes."""
        return self._ring(size * (ranks - 1) / ranks, ranks - 1)

    def _ring(self, wire: float, steps: int) -> float:
        return self.start + self.alpha * steps + wire / self.beta if steps else 0.0


#: Eight H100 with NVSwitch: about 370 GB/s of bus bandwidth for rings (nccl-tests issues 212, 290)
#: and 33 us for a small all-reduce of eight ranks (nccl issue 2094).
NVLINK = Link("NVLink", 1.5e-6, 3.7e11, 1.0e-5)
#: One 400 Gbit/s adapter a GPU: 46 to 48 GB/s each (nccl-tests issue 290).
NETWORK = Link("network", 5e-6, 4.6e10, 2.0e-5)
#: gloo between processes of one machine, over its memory; the order of what one core copies.
LOOPBACK = Link("loopback", 2.0e-5, 1.5e9, 1.0e-4)

GPUS_OF_A_NODE = 8


def links_of(mesh: Mesh, device: str) -> tuple[Link, ...]:
    """Of each axis of a mesh whose ranks are numbered node by node.

    An axis lies inside a node when it and all faster ones together do.
    """
    if device != "cuda":
        return (LOOPBACK,) * len(mesh.sizes)
    inside = [math.prod(mesh.sizes[axis:]) <= GPUS_OF_A_NODE for axis in range(len(mesh.sizes))]
    return tuple(NVLINK if near else NETWORK for near in inside)
