"""Gradients of whole parameters that no compiled graph averages over the axes of data.

With the option mesh, gradients are averaged in the graphs that compute them. Code that
`torch.compile` leaves in eager (a module that breaks the graph, a frame with too many versions)
gives gradients of this rank's batch alone, and nothing tells them from others. So each parameter in
reach of a compiled function has a hook that runs when its gradient is complete: nothing is left to
do where a compiled graph has averaged it in the same backward pass, otherwise it is averaged there.
What has been accumulated before is averaged with it, which changes nothing: ranks have it alike.

A parameter that is used both in a compiled graph and in eager in one pass is told by its two names
in the model, as a tied head is; one with a single name is taken to be the graph's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

Axes = tuple[tuple[str, int], ...]
"""Names of process groups and their sizes."""


@dataclass
class _Watched:
    """A parameter that has a hook.

    Attributes:
        axes: those of data.
        tied: whether it has several names.
        averaged_in: the backward pass in which a compiled graph has averaged its gradient.
    """

    axes: Axes
    tied: bool = False
    averaged_in: int = -1

    def complete(self, parameter: Tensor) -> None:
        """The hook: what no graph has averaged is averaged here."""
        if self.averaged_in == torch._C._current_graph_task_id() and not self.tied:
            return
        assert parameter.grad is not None
        for group, size in self.axes:
            parameter.grad.div_(size)  # first, as in DDP: for float16
            dist.all_reduce(parameter.grad, group=_resolve_process_group(group))  # type: ignore[arg-type]


_WATCHED: Any = WeakIdKeyDictionary()


def _watch(parameter: Tensor, axes: Axes, tied: bool = False) -> None:
    if not (parameter.requires_grad and parameter.is_leaf) or isinstance(parameter, DTensor):
        return
    watched = _WATCHED.get(parameter)
    if watched is None:
        watched = _WATCHED[parameter] = _Watched(axes)
        parameter.register_post_accumulate_grad_hook(watched.complete)
    watched.axes = axes
    watched.tied |= tied


class GraphParameters:
    """The parameters among the inputs of a compiled function's graph; holds none of them.

    Args:
        inputs: of the graph.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        self._held = [weakref.ref(v) if isinstance(v, nn.Parameter) else None for v in inputs]
        self._averaged: list[Callable[[], nn.Parameter | None]] = []

    def watch(
        self,
        models: Iterable[nn.Module],
        axes: Axes,
        averaged: Iterable[int],
        inputs: int,
    ) -> None:
        """See to it that gradients are averaged over data axes, by whatever they come.

        Args:
            models: in reach of the compiled function; their parameters, and those of the graph.
            axes: those of data, of several ranks.
            averaged: positions of inputs whose gradients the backward graph averages.
            inputs: how many there are after tracing; with fewer, positions say nothing.
        """
        if not axes:
            return
        for ref in self._held:
            if ref is not None and (parameter := ref()) is not None:
                _watch(parameter, axes)
        for model in models:
            seen: set[int] = set()
            for _, parameter in model.named_parameters(remove_duplicate=False):
                _watch(parameter, axes, tied=id(parameter) in seen)
                seen.add(id(parameter))
        if inputs == len(self._held):
            refs = [self._held[position] for position in averaged]
            self._averaged = [ref for ref in refs if ref is not None]

    def averaging(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled backward graph, which tells hooks what it has averaged."""
        parameters = (ref() for ref in self._averaged)
        known = [_WATCHED.get(p) for p in parameters if p is not None]
        watched = [one for one in known if one is not None]
        return _Averaging(run, watched) if watched else run


class _Averaging:
    """Called as `run` is; tells the hooks that there is nothing left to do."""

    def __init__(self, run: Callable[..., Any], watched: Sequence[_Watched]) -> None:
        self._run = run
        self._watched = watched
        if getattr(run, "_boxed_call", False):
            self._boxed_call = True

    def __call__(self, *args: Any) -> Any:
        task = torch._C._current_graph_task_id()
        results = self._run(*args)
        for one in self._watched:
            one.averaged_in = task
        return results
