"""`BatchOp`: one graph for each of many rows of tensors, as the target of a graph node.

A row has one tensor for each column. The graph sees the tensors of a row flattened to one dim of
one symbolic size, so that it serves rows of any sizes; single values stay single values. Calling a
`BatchOp` runs its graph row by row, so a graph with one is still a graph that any FX interpreter
executes. Rows share no memory that is written: they may run in any order, or at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule


@dataclass(frozen=True, eq=False)
class BatchOp:
    """A graph with what another graph needs to call it for many rows.

    Arguments of a call: a list of single values that all rows share, and a list of columns, each a
    list of one tensor a row. Result: a tuple of the outputs of the first row, then of the second.

    Attributes:
        name: under which it prints, unique within its graph.
        body: a placeholder for each shared value, then one for each column; it may write into the
            columns with `copy_`, and returns a list of new tensors.
        flat: for each column, whether its tensors are flattened; else they are single values.
    """

    name: str
    body: GraphModule
    flat: tuple[bool, ...]

    @property
    def __name__(self) -> str:
        return self.name

    def with_body(self, body: GraphModule) -> BatchOp:
        """The same op with another graph of the same meaning."""
        return replace(self, body=body)

    def __call__(
        self, shared: Sequence[Tensor], columns: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, ...]:
        from torch.fx import Interpreter

        results: list[Tensor] = []
        for row in zip(*columns, strict=True):
            like = next((t for t, flat in zip(row, self.flat, strict=True) if flat), None)
            given = [
                tensor.as_strided((tensor.numel(),), (1,)) if flat else tensor
                for tensor, flat in zip(row, self.flat, strict=True)
            ]
            made = Interpreter(self.body).run(*shared, *given)
            results += [_shaped(tensor, like) for tensor in made]
        return tuple(results)


def _shaped(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A result of the body in the layout of the row's tensors."""
    if like is None or tensor.dim() == 0:
        return tensor
    return tensor.as_strided(like.shape, like.stride())
