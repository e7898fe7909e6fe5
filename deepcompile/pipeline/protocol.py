"""The contract between a pass and the pipeline. Knows no pass and imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

GraphKind = Literal["joint", "inference", "forward", "backward"]


@dataclass(frozen=True)
class PassResult:
    """What one pass did: the graph (the same object when nothing changed), and counts to show."""

    graph: GraphModule
    changed: bool
    stats: Mapping[str, int | float] = field(default_factory=dict)


class PassContext(Protocol):
    """What a pass may ask for. Passes never print, time or dump; they ask and they note."""

    @property
    def kind(self) -> GraphKind:
        """Which graph of the training step this is."""
        ...

    @property
    def options(self) -> Any:
        """The `deepcompile.Options` of this compile."""
        ...

    def allow(self, rewrite: str, node: Node | None = None) -> bool:
        """Leave to apply one rewrite; each call that returns True counts towards the limit."""
        ...

    def note(self, event: str, **fields: Any) -> None:
        """Record a fact (a rejected fusion edge, a fallback) in the run's events."""
        ...

    def report(self, subject: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a document on what was decided for this graph; made only if somebody keeps it."""
        ...


class Pass(Protocol):
    """A frozen dataclass; its fields are its options and its docstring starts with its summary.

    Where equal outputs for equal inputs are not what a pass keeps, it also has
    `check(before, after, seed)`, which `verify` calls with a changed graph. It returns what
    `execute.compare_graphs` returns and raises what that raises. It must not communicate.
    """

    name: ClassVar[str]
    phase: ClassVar[Literal["joint", "graph"]]
    requires: ClassVar[frozenset[str]]
    establishes: ClassVar[frozenset[str]]
    skippable: ClassVar[bool]

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite `graph`; return a new one, or the same one with `changed=False`."""
        ...
