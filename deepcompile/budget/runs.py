"""How often a graph runs in one step, and with which parameters.

What a forward saved is in memory until its backward has run, or until nobody can run that any more.
So each forward leaves a mark in the autograd graph, which goes with either. Marks may go at any
moment and on any thread: that is one operation on a set, and waits for nothing.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..capture.torch_private import (
    backward_node,
    hidden_from_dynamo,
    keeps_saved_tensors,
    saved_tensors_are_hooked,
)

_MARK = "deepcompile.run"
_NUMBERS = itertools.count()


class Run:
    """A forward whose backward is yet to come.

    Args:
        waiting: numbers of all such forwards of the graph; it is among them from now on.
    """

    def __init__(self, waiting: set[int]) -> None:
        self._number = next(_NUMBERS)
        self._waiting = waiting
        waiting.add(self._number)

    def end(self) -> None:
        """What it saved is in memory no more."""
        self._waiting.discard(self._number)

    __del__ = end


class Runs:
    """The forwards of one graph.

    Attributes:
        most: how many waited for their backward at once when one began: calls in a step.
        backward: whether a backward began since somebody set this to False.
    """

    def __init__(self) -> None:
        self.most = 1
        self.backward = False
        self._waiting: set[int] = set()

    @property
    def waiting(self) -> int:
        """Forwards whose backward is yet to come."""
        return len(self._waiting)

    def begin(self) -> Run:
        """A forward has run; it counts as long as somebody has the result."""
        return Run(self._waiting)

    def mark(self, outputs: Any) -> None:
        """A forward has given these outputs.

        What it saved does not stay where hooks take it, as those of `torch.utils.checkpoint` do.
        """
        if saved_tensors_are_hooked():
            return
        node = backward_node(outputs, _MARK)
        if node is None:
            return
        run = node.metadata[_MARK] = self.begin()
        node.register_prehook(partial(_BEGIN_BACKWARD, self, run))

    def begin_backward(self, run: Run) -> None:
        """The backward of a forward is about to run."""
        self.backward = True
        self.most = max(self.most, self.waiting)
        if not keeps_saved_tensors():
            run.end()


def _begin_backward(runs: Runs, run: Run, gradients: Any) -> None:
    runs.begin_backward(run)


_BEGIN_BACKWARD = hidden_from_dynamo(_begin_backward, "it counts what is in memory")


class Parameters:
    """The parameters that a graph was called with so far, as far as they are there."""

    def __init__(self) -> None:
        self._places: tuple[int, ...] | None = None
        self._call_bytes = 0
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def see(self, args: Sequence[Any]) -> None:
        """The graph is called with these."""
        if self._places is None:
            self._places = tuple(i for i, arg in enumerate(args) if isinstance(arg, nn.Parameter))
            self._call_bytes = sum(args[place].nbytes for place in self._places)
        new = [args[at] for at in self._places if not self._is_known(args[at])]
        if new:
            alive = {key: entry for key, entry in self._known.items() if entry[0]() is not None}
            self._known = alive | {id(each): (weakref.ref(each), each.nbytes) for each in new}

    def _is_known(self, parameter: Any) -> bool:
        entry = self._known.get(id(parameter))
        return entry is not None and entry[0]() is parameter

    @property
    def ids(self) -> set[int]:
        """Of each of them."""
        return {key for key, (ref, _) in self._known.items() if ref() is not None}

    def copies(self, beside: Collection[int] = ()) -> int:
        """How many times those of one call they are, in bytes and rounded up.

        Args:
            beside: ids of parameters that do not count.
        """
        if not self._call_bytes:
            return 1
        known = [(key, nbytes) for key, (ref, nbytes) in self._known.items() if ref() is not None]
        return -(-sum(nbytes for key, nbytes in known if key not in beside) // self._call_bytes)
