"""Binary search for where good turns bad, over probes that may also tell nothing. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["good", "bad", "skip"]
"""`skip`: it failed in another way, or asked to be skipped."""
Ask = Callable[[Sequence[int]], Sequence[Verdict]]
"""The verdicts of several limits, which may be probed at once."""


@dataclass
class Found:
    """Where a prefix turns bad.

    Attributes:
        last_good, first_bad: neighbours, unless everything between them was skipped.
        probed: all verdicts, by limit.
        against: limits below `last_good` that are bad, and above `first_bad` that are good.
    """

    last_good: int
    first_bad: int
    probed: dict[int, Verdict] = field(default_factory=dict)
    against: tuple[int, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether one step alone turns good into bad."""
        return self.first_bad == self.last_good + 1

    @property
    def is_monotone(self) -> bool:
        """Whether nothing that was probed speaks against one step from good to bad."""
        return not self.against

    def describe(self) -> str:
        """The verdicts in order, as `0 good, 4 skip, 5 bad`."""
        return ", ".join(f"{limit} {verdict}" for limit, verdict in sorted(self.probed.items()))


def search(good: int, bad: int, ask: Ask, *, jobs: int = 1, checks: int = 2) -> Found:
    """Where limits between one that is known to be good and one known to be bad turn bad.

    Args:
        jobs: how many limits are asked for at once.
        checks: how many limits on either side of the answer are then asked for, to see whether
            the search was one over something that turns once.
    """
    probed: dict[int, Verdict] = {good: "good", bad: "bad"}

    def probe(limits: Sequence[int]) -> None:
        probed.update(zip(limits, ask(limits), strict=True))

    low, high = good, bad
    while True:
        open_ = [limit for limit in range(low + 1, high) if limit not in probed]
        if not open_:
            break
        probe(_spread(open_, jobs))
        high = min(n for n, verdict in probed.items() if verdict == "bad" and n > low)
        low = max(n for n, verdict in probed.items() if verdict == "good" and n < high)
    below = [n for n in range(good + 1, low) if n not in probed]
    above = [n for n in range(high + 1, bad) if n not in probed]
    rest = [*_spread(below, checks), *_spread(above, checks)]
    for start in range(0, len(rest), max(jobs, 1)):
        probe(rest[start : start + max(jobs, 1)])
    against = [
        n for n, v in probed.items() if (v == "bad" and n < low) or (v == "good" and n > high)
    ]
    return Found(low, high, probed, tuple(sorted(against)))


def _spread(limits: Sequence[int], count: int) -> list[int]:
    """At most so many of some limits, that part them evenly."""
    size = len(limits)
    if size <= count:
        return list(limits)
    return sorted({limits[(size * (i + 1)) // (count + 1)] for i in range(count)})
