"""What the graphs of one model hold: with a graph break there are several, and one budget.

A graph is planned for what the graphs before it leave: their parameters, the state of their
optimizer and what they saved, all of which is there while it runs. What graphs after it will need
nobody knows when it is planned.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

_MOST = 64


@dataclass
class Ledger:
    """Bytes by graph, in the order in which they were first compiled."""

    held: OrderedDict[object, int] = field(default_factory=OrderedDict)

    def before(self, graph: object) -> int:
        """What the graphs before this one hold while it runs."""
        total = 0
        for other, held in self.held.items():
            if other == graph:
                break
            total += held
        return total

    def enter(self, graph: object, held: int) -> None:
        """A graph holds so many bytes from its forward on; a new version replaces the old one."""
        self.held[graph] = held


_LEDGERS: OrderedDict[int, tuple[Any, Ledger]] = OrderedDict()


def ledger_of(options: Any) -> Ledger:
    """The ledger of all graphs of one call of `torch.compile`: they get the same options object."""
    if options is None:
        return Ledger()
    known = _LEDGERS.get(id(options))
    if known is None:
        # The object is kept, so that its number stays its own.
        known = _LEDGERS[id(options)] = options, Ledger()
        if len(_LEDGERS) > _MOST:
            _LEDGERS.popitem(last=False)
    return known[1]
