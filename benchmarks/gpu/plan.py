"""What one run measures: on which device, how large, how thoroughly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """The command line and the card.

    Attributes:
        device: where everything runs; the CPU in a smoke run.
        smoke: tiny sizes on the CPU, to see that the suites work: the numbers mean nothing.
        quick: few rounds and few cases, to see that it works on a card.
        contenders: the names that may run; None means all.
        memory: bytes of the card.
    """

    device: torch.device
    smoke: bool = False
    quick: bool = False
    contenders: tuple[str, ...] | None = None
    memory: int = GIB

    @classmethod
    def of_machine(cls, *, smoke: bool, quick: bool, contenders: tuple[str, ...] | None) -> Plan:
        """Raises RuntimeError where there is no GPU and no smoke run was asked for."""
        if smoke:
            return cls(torch.device("cpu"), True, quick, contenders)
        if not torch.cuda.is_available():
            raise RuntimeError("no CUDA device; --cpu-smoke runs the suites' logic on the CPU")
        card = torch.cuda.get_device_properties(0)
        return cls(
            torch.device("cuda", 0),
            False,
            quick,
            contenders,
            card.total_memory,
        )

    def pick(self, full: int, quick: int, smoke: int | None = None) -> int:
        """The number for this kind of run; a smoke run takes `quick` unless it has its own."""
        if not self.smoke:
            return quick if self.quick else full
        tiny = quick if smoke is None else smoke
        return min(quick, tiny) if self.quick else tiny

    def allows(self, contender: str) -> bool:
        return self.contenders is None or contender in self.contenders

    @property
    def elements(self) -> int:
        """Numbers of a large tensor: a power of two, 256 MiB of bf16 where the card has room."""
        if self.smoke:
            return 1 << 12
        fits = max(self.memory // 128, 1 << 20)
        return min(1 << 27, 1 << (fits.bit_length() - 1))
