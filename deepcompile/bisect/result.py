"""What a bisection found, level by level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from deepcompile.bisect.search import Found
from deepcompile.bisect.subject import Settings
from deepcompile.child.signature import Signature

Level = Literal["pass", "rewrite", "kernel"]
LEVELS: tuple[Level, ...] = ("pass", "rewrite", "kernel")


@dataclass
class Culprit:
    """What was found at one level.

    Attributes:
        name: of the pass, the rewrite or the kernel; None: it is not at this level, see `note`.
        where: the graph, the node, the ops and user lines.
        total: how many there are on this level.
        good, bad: the settings of the neighbours, of which the first is good and the second bad.
    """

    level: Level
    name: str | None
    where: str = ""
    number: int | None = None
    total: int = 0
    found: Found | None = None
    good: Settings = field(default_factory=dict)
    bad: Settings = field(default_factory=dict)
    note: str = ""
    diff: tuple[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, without the texts of graphs."""
        search = None
        if self.found is not None:
            search = {
                "last_good": self.found.last_good,
                "first_bad": self.found.first_bad,
                "exact": self.found.is_exact,
                "monotone": self.found.is_monotone,
                "against": list(self.found.against),
                "probed": {str(n): v for n, v in sorted(self.found.probed.items())},
            }
        return {
            "level": self.level,
            "name": self.name,
            "where": self.where,
            "number": self.number,
            "total": self.total,
            "note": self.note,
            "search": search,
        }


@dataclass
class Result:
    """All that a bisection found.

    Attributes:
        failure: as it was seen first.
        good_line, bad_line: shell commands that show the last good and the first bad.
        fresh: whether new processes gave the same for both; None: every run was one.
    """

    failure: Signature
    culprits: list[Culprit]
    good_line: str
    bad_line: str
    fresh: bool | None
    seeds: dict[int, str]
    runs: int
    others: list[str]

    @property
    def deepest(self) -> Culprit | None:
        """The last level at which something was found."""
        named = [culprit for culprit in self.culprits if culprit.name is not None]
        return named[-1] if named else None
