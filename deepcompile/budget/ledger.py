"""What the graphs of one model hold: with a graph break there are several, and one budget.

A graph is planned for what the graphs before it leave: their parameters, the state of their
optimizer and what they saved, all of which is there while it runs. What graphs after it will need
nobody knows when it is planned.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_MOST = 64


@dataclass
class Held:
    """Bytes that a graph holds, for as long as what it was compiled to is there."""

    nbytes: int
    compiled: weakref.ref[Any] | None = None

    @property
    def counts(self) -> bool:
        """False once Dynamo has let go of the compiled graph."""
        return self.compiled is None or self.compiled() is not None


@dataclass
class Ledger:
    """Bytes by graph, in the order in which they were first compiled."""

    held: OrderedDict[object, Held] = field(default_factory=OrderedDict)

    def before(self, graph: object) -> int:
        """What the graphs before this one hold while it runs."""
        for other in [key for key, held in self.held.items() if not held.counts]:
            del self.held[other]
        total = 0
        for other, held in self.held.items():
            if other == graph:
                break
            total += held.nbytes
        return total

    def enter(self, graph: object, held: int) -> None:
        """A graph holds so many bytes from its forward on; a new version replaces the old one."""
        self.held[graph] = Held(held)

    def compiled(self, graph: object, result: Callable[..., Any]) -> None:
        """What it became: with that it ends."""
        # Of a function that Dynamo must not trace, it keeps what is inside.
        inner = getattr(result, "_torchdynamo_orig_callable", result)
        if graph in self.held:
            self.held[graph].compiled = weakref.ref(inner)


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
